"""How the experts of a mixture are to be held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["predict", "recency"]
"""`predict` reads experts ahead and keeps those that will be used soonest; `recency` reads them when they are needed
and keeps those that were used last."""


@dataclass(frozen=True, slots=True)
class ExpertOptions:
    """A cache for experts, whose others stay in the checkpoint's files (docs/experts.md).

    Attributes:
        cache: its size: up to 1 a share of all experts in full precision, above it bytes.
        int8: share of each layer's experts, the least used, that are served in int8.
        mode: what is kept and read ahead.
        folder: where the experts in int8 are written; None: in the user's cache folder.
    """

    cache: float
    int8: float = 0.0
    mode: Mode = "predict"
    folder: Path | None = None
