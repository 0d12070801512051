"""Greedy choices among the tokens that masks allow (choice.cpp)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from aios_kernel.engine.torch.native.build import library


def served(logits: Tensor) -> bool:
    """Whether the compiled choice can be had for these logits."""
    return logits.device.type == "cpu" and library() is not None


def best(logits: Tensor, rows: Sequence[int], bits: Tensor) -> tuple[list[int], list[bool]]:
    """The largest logit that is allowed, for some rows, and whether it is finite; NaN counts as the largest.

    Args:
        logits: float32, [all rows, vocab].
        rows: to choose for.
        bits: a bit for each token that is allowed, int32, [rows, ceil(vocab / 32)].
    """
    places = np.array(rows, dtype=np.int64)
    tokens, values = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.float32)
    logits, bits = logits.contiguous(), bits.contiguous()
    _function()(
        logits.data_ptr(), logits.shape[1], places.ctypes.data, len(rows),
        bits.data_ptr(), bits.shape[1], tokens.ctypes.data, values.ctypes.data,
    )  # fmt: skip
    return tokens.tolist(), np.isfinite(values).tolist()


@functools.cache
def _function() -> Any:
    function: Any = library().aios_choose  # pyright: ignore[reportOptionalMemberAccess]
    function.restype = None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, pointer, number, pointer, number, pointer, pointer]
    return function
