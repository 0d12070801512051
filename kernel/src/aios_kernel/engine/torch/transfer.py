"""Small arrays from the host to the model's device, without waiting for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor


def on(device: torch.device, values: ArrayLike, dtype: DTypeLike | None = None) -> Tensor:
    """Numbers as a tensor on a device; on the CPU it may share their memory."""
    array: Any = np.asarray(values, dtype=dtype)
    return moved(torch.from_numpy(array), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device. An ordinary copy would wait until the device has done all that it was given before."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
