from clusters import no_cluster

__all__ = ["no_cluster"]
