"""Mixtures of experts larger than memory: experts are read when a layer needs them, or before (docs/experts.md)."""
