"""Is this machine, this description of a cluster, or this configuration ready? Each check reports what was found and the remedy."""
