"""Benches and evals: workloads, baselines, reports. Adds `aios bench`."""
