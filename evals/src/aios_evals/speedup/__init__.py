"""`aios bench speedup`: the same agents with and without the kernel, on recorded work."""
