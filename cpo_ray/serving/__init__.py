"""From models to endpoints: the weight-space ensemble and Ray Serve."""
