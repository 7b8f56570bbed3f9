"""Start, find and stop the cluster that the verbs talk to."""
