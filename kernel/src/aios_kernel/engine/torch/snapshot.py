"""A context in host memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from aios_kernel.engine.torch.context import TorchContext


@dataclass(slots=True)
class TorchSnapshot:
    """See `aios_kernel.engine.protocol.Snapshot`. It can be restored more than once.

    Attributes:
        tokens: prompt and answer.
        computed: how many of them have KV.
        fingerprint: of the engine that it was taken from.
        nbytes: size of the KV data in bytes.
        state: the context without its blocks.
        blocks: number and generation of each block it had: a block that still holds that content is attached again
            instead of being copied, so that contexts with a common prefix share it again.
        data: keys and values of all its blocks, as `KvMemory.read` gives them.
    """

    tokens: list[int]
    computed: int
    fingerprint: str
    nbytes: int
    state: TorchContext
    blocks: list[tuple[int, int]]
    data: list[Tensor]
