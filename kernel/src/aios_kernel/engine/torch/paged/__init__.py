"""Attention over the blocks on a GPU, decode steps as CUDA graphs, choices and copies that wait for nothing."""
