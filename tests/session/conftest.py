from clusters import cluster, no_cluster, second_node, session

__all__ = ["cluster", "no_cluster", "second_node", "session"]
