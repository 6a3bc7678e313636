"""What a run shows while it goes on: console, metrics log, Prometheus, trackers, events, warnings."""
