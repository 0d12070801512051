"""Scheduling policies on recorded agent sessions: a simulator of one GPU's engine, its baselines and its report."""
