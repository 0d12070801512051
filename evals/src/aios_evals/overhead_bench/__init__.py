"""`aios bench overhead`: the same token work on the engine itself, through the kernel, and through its socket."""
