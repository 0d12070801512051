"""`aios bench kills` and `aios bench soak`: a kernel that is killed again and again, and one that runs for long."""
