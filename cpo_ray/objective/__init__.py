"""The mathematics of CPO in plain PyTorch: token trees, log-probs, losses. No Ray, no vLLM."""
