"""How much room snapshots may take, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aios_kernel.config import Config, home_of

_HOST_SHARE = 4
"""Of the machine's memory, host snapshots may take one part in so many unless the configuration says otherwise."""


@dataclass(frozen=True, slots=True)
class SwapSpace:
    """Budgets of the tiers below the KV pool; without a folder there is no disk tier."""

    host_bytes: int = 1 << 62
    disk_bytes: int = 0
    folder: Path | None = None


def swap_space(config: Config) -> SwapSpace:
    """The budgets that a configuration sets."""
    host = config.kv_host_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _HOST_SHARE
    folder = home_of(config) / "swap" if config.kv_disk_bytes else None
    return SwapSpace(host, config.kv_disk_bytes, folder)
