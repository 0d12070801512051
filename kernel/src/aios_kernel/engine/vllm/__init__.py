"""Models by vLLM: its server as a child of the kernel, for several GPUs."""

from aios_kernel.engine.vllm.load import vllm_model

__all__ = ["vllm_model"]
