"""The list of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aios_kernel.errors import UnknownModel


def model_list(names: Iterable[str], created_s: float = 0.0) -> dict[str, Any]:
    """The models by name, without repetitions; `created_s` is since when they are served."""
    return {"object": "list", "data": [_model(name, created_s) for name in dict.fromkeys(names)]}


def model_named(name: str, names: Iterable[str], created_s: float = 0.0) -> dict[str, Any]:
    """One model of the list. Raises UnknownModel."""
    if name not in names:
        raise UnknownModel(f'no model "{name}" is served here', fix="GET /v1/models lists what is served")
    return _model(name, created_s)


def _model(name: str, created_s: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created_s), "owned_by": "aios"}
