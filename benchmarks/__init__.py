"""Benchmarks: each measures ratios against baselines in one run and writes them to benchmarks/results/."""
