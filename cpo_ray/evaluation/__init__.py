"""Evaluation of models: generation, the LLM judge, the reward model, MAUVE, text metrics, and their statistics."""
