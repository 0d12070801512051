"""The torch engine: paged KV, continuous batching and sampling around unmodified transformers models."""

from aios_kernel.engine.torch.engine import TorchEngine

__all__ = ["TorchEngine"]
