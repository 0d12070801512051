"""A name for what must be equal so that a snapshot continues exactly."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from aios_kernel.engine.torch.experts.loading import mixture_of
from aios_kernel.engine.torch.prefix import BLOCK

_SAMPLES = 1024
"""Numbers looked at in each tensor; two trainings of one shape differ in all of them."""


def fingerprint(model: Any) -> str:
    """Digest of the model's configuration, dtype, kind of device and weights (a sample of every tensor)."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_") and k != "transformers_version"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    with torch.inference_mode():
        for name, tensor in model.state_dict().items():
            flat = tensor.reshape(-1)
            sample = flat[:: max(1, len(flat) // _SAMPLES)].float().cpu().numpy()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type}".encode())
            digest.update(sample.tobytes())
    if (mixture := mixture_of(model)) is not None:
        digest.update(mixture.stored.fingerprint.encode())
    return f"torch:{BLOCK}:{digest.hexdigest()[:32]}"
