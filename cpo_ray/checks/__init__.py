"""Is this machine, or this description of a cluster, ready? Each check says what was seen and what to do."""
