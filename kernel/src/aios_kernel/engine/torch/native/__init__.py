"""Attention in C++ for the CPU: compiled once on the user's machine; without a compiler the engine runs without it."""
