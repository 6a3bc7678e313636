"""Ray: starting or joining a cluster, what each stage needs on it, and settings for Ray Data, accelerators and sockets."""
