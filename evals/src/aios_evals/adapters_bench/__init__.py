"""`aios bench adapters`: what an adapter adds to a call of its framework."""
