"""Sweeps: a queue of runs on this machine over seeds and arms, which share what they have in common."""
