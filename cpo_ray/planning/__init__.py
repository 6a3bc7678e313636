"""What a run will need, estimated before it starts."""
