"""GGUF models by llama.cpp, quantised or not, under the kernel's step control.

Only the low-level API is used: llama.cpp computes batches of many sequences and keeps their KV; who is in a batch, what
is shared, copied, kept and given up is decided here. Sampler and grammars are those of the torch engine.
"""

from aios_kernel.engine.llamacpp.load import llamacpp_model

__all__ = ["llamacpp_model"]
