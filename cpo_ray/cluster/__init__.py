"""Ray: start or join a cluster, wait for a stage's resources, and settings for Ray Data, accelerators and sockets."""
