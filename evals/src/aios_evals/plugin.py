"""Adds `aios bench` to the command line."""
