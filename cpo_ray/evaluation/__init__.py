"""Evaluation of models: generation, the LLM judge, the reward model, MAUVE, and their statistics."""
