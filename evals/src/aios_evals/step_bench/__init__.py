"""`aios bench step`: where the CPU time of a decode step goes."""
