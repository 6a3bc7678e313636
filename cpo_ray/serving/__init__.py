"""Merge models (the weight-space ensemble) and serve them with Ray Serve and vLLM."""
