"""From groups to models: Ray Train carries DeepSpeed."""
