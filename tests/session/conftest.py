from clusters import cluster, no_cluster, session

__all__ = ["cluster", "no_cluster", "session"]
