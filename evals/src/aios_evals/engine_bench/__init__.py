"""`aios bench engine`: our engine and its peers in one run, on the same weights, dtype, threads and prompts."""
