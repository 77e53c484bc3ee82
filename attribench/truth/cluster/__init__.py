"""Jobs on a cluster, by Ray."""
