"""The mathematics of CPO in plain torch: token trees, log-probs, losses. No Ray, no vLLM."""
