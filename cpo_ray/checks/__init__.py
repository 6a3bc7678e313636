"""Is this machine, or this description of a cluster, ready? Each check reports what was found and the remedy."""
