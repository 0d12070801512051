"""How large the KV pool may be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from aios_kernel.engine.torch.host_memory import available_bytes
from aios_kernel.engine.torch.kv import LayerShape
from aios_kernel.engine.torch.prefix import BLOCK
from aios_kernel.errors import ConfigError

_log = logging.getLogger(__name__)
GIB = 1 << 30
CPU_CAP_BYTES = 2 * GIB
"""On the CPU the pool takes at most this much unless `kv_tokens` asks for more (`dense.BUDGET_BYTES` comes on top)."""
CPU_SHARE = 0.5
"""Share of the free host memory that the pool may take."""
CUDA_RESERVE_BYTES = 2 * GIB
"""Left free on the device for activations and the allocator's fragments..."""
CUDA_SHARE = 0.9
"""...and at most this share of what is free is taken."""
MAX_TOKENS = 1 << 22
"""More tokens than this serve nobody; it bounds the bookkeeping of very small models."""


def pool_blocks(
    shapes: Sequence[LayerShape],
    dtype: torch.dtype,
    device: torch.device,
    kv_tokens: int | None,
    *,
    promised: int = 0,
) -> int:
    """Blocks of the pool, its padding block included.

    Args:
        shapes: what each layer stores of a token.
        dtype: of keys and values.
        device: where the pool lives.
        kv_tokens: its size in tokens; None takes what the free memory allows, see this module's constants.
        promised: bytes that are free still and belong to something else, such as the expert cache.

    Raises:
        ConfigError: the pool would be smaller than one block or larger than the free memory.
    """
    token_bytes = sum(shape.width for shape in shapes) * dtype.itemsize
    free = max(0, free_bytes(device) - promised)
    if kv_tokens is None:
        kv_tokens = min(_budget(free, device) // token_bytes, MAX_TOKENS)
    elif kv_tokens * token_bytes > free:
        raise ConfigError(
            f"a KV pool of {kv_tokens} tokens takes {kv_tokens * token_bytes / GIB:.1f} GiB, "
            f"but {free / GIB:.1f} GiB are free on {device}",
            fix=f"set kv_tokens to at most {free // token_bytes}",
        )
    if kv_tokens < BLOCK:
        raise ConfigError(
            f"no room for a KV pool on {device}: {free / GIB:.1f} GiB are free, a token takes {token_bytes} bytes",
            fix="choose a smaller model or free memory; or set kv_tokens",
        )
    taken = kv_tokens * token_bytes
    _log.info(
        "KV pool: %s tokens, %.2f of %.2f GiB free on %s; %.2f GiB are left in reserve",
        f"{kv_tokens // BLOCK * BLOCK:,}", taken / GIB, free / GIB, device, (free - taken) / GIB,
    )  # fmt: skip
    return kv_tokens // BLOCK + 1


def _budget(free: int, device: torch.device) -> int:
    """Bytes for the pool when nobody says how large it should be."""
    if device.type == "cpu":
        return min(CPU_CAP_BYTES, int(free * CPU_SHARE))
    return max(0, min(free - CUDA_RESERVE_BYTES, int(free * CUDA_SHARE)))


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on a device; on the host, within the process's control group."""
    if device.type != "cuda":
        return available_bytes()
    torch.cuda.empty_cache()  # what torch keeps of tensors that are gone counts as taken
    return torch.cuda.mem_get_info(device)[0]
