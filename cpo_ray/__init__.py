"""Contrastive Preference Optimization (Feng et al.) as a distributed system on Ray."""

__version__ = "0.1.0"
