"""A run as a job on a Ray cluster."""
