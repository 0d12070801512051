"""`aios bench moe`: a mixture with part of its experts in memory, read ahead or on demand (docs/experts.md)."""
