from clusters import _nodes, cluster, no_cluster, own_second_node, second_node, session

__all__ = ["_nodes", "cluster", "no_cluster", "own_second_node", "second_node", "session"]
