"""Low-rank adapters (LoRA, Hu et al. 2021), each context with its own, in one batch on one model."""
