"""`aios demo`: agents of four frameworks at once on the demo model, with the kernel and without."""
