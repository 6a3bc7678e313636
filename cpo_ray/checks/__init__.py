"""Is this machine, this description of a cluster, or this configuration ready? Each check says what it found and the remedy."""
