"""`aios bench memory`: what the memory finds on recorded conversations, and how fast it writes and searches."""
