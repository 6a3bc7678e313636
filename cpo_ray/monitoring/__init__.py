"""What a run prints, logs and measures: console, metrics log, Prometheus, trackers, events, warnings."""
