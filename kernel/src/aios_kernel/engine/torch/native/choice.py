"""Greedy choices, among all tokens or those that masks allow (choice.cpp)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.native.build import library

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def served(logits: Tensor) -> bool:
    """Whether the compiled choice can be had for these logits."""
    return logits.device.type == "cpu" and logits.dtype in _DTYPES and library() is not None


def best(logits: Tensor, rows: Sequence[int] | None = None, bits: Tensor | None = None) -> tuple[list[int], list[bool]]:
    """The largest logit of rows and whether it is finite; NaN counts as the largest, of equal ones the first.

    Args:
        logits: float32 or bfloat16, [all rows, vocab].
        rows: to choose for; None: for all.
        bits: a bit for each token that is allowed, int32, [rows, ceil(vocab / 32)]; None: all are.
    """
    places = None if rows is None else np.array(rows, dtype=np.int64)
    tokens, values = _run("aios_choose", logits, places, len(logits) if rows is None else len(rows), bits)
    return tokens.tolist(), np.isfinite(values).tolist()


def best_of_each(logits: Tensor, bits: Tensor, places: Sequence[int]) -> tuple[list[int], list[float]]:
    """The largest logit of every row among what its mask allows, and its value.

    Args:
        logits: float32 or bfloat16, [rows, vocab].
        bits: masks as of `best`, in any number.
        places: which of them each row has; -1: none.

    Returns:
        Tokens, and their logits: minus infinity where no token is allowed, NaN for a masked row that has a NaN or a
        plus infinity anywhere.
    """
    tokens, values = _run("aios_choose_each", logits, np.array(places, dtype=np.int64), len(logits), bits)
    return tokens.tolist(), values.tolist()


def _run(
    name: str, logits: Tensor, rows: NDArray[np.int64] | None, n: int, bits: Tensor | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    tokens, values = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)
    logits, bits = logits.contiguous(), None if bits is None else bits.contiguous()
    _function(f"{name}_{_DTYPES[logits.dtype]}")(
        logits.data_ptr(), logits.shape[1], None if rows is None else rows.ctypes.data, n,
        None if bits is None else bits.data_ptr(), 0 if bits is None else bits.shape[1],
        tokens.ctypes.data, values.ctypes.data,
    )  # fmt: skip
    return tokens, values


@functools.cache
def _function(name: str) -> Any:
    function: Any = getattr(library(), name)
    function.restype = None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, number, pointer, number, pointer, number, pointer, pointer]
    return function
