"""How much memory this process may still take on the host: what the system has left, or its control group, if less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Version:
    """Where a version of control groups keeps its numbers."""

    mount: str
    limit: str
    used: str
    reclaimable: str
    """Line of `memory.stat` that counts cached file pages: they count as used, but go when memory is short."""


_V1 = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping and without being killed for it; `root` holds `proc` and `sys`."""
    limits = [*_system(root), *_groups(root)]
    return min(limits, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def _system(root: Path) -> Iterator[int]:
    available = _line(root / "proc/meminfo", "MemAvailable:")
    if available is not None:
        yield available * 1024


def _groups(root: Path) -> Iterator[int]:
    """What is left in the process's control group and in each that it lies in."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        version = _V2 if controllers == "" else _V1 if "memory" in controllers.split(",") else None
        if version is not None:
            mount = root / version.mount
            # In a container the path may be the host's, while the mount shows the container's own group at its root.
            inner = mount / path.lstrip("/")
            for folder in {mount, inner, *(parent for parent in inner.parents if mount in parent.parents)}:
                yield from _left(folder, version)


def _left(folder: Path, version: _Version) -> Iterator[int]:
    limit, used = _number(folder / version.limit), _number(folder / version.used)
    if limit is not None and used is not None:  # without a limit there is the word "max", or (v1) a huge number
        yield max(0, limit - used + (_line(folder / "memory.stat", version.reclaimable) or 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _line(path: Path, name: str) -> int | None:
    """The number behind a name in a file of lines."""
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == name:
                return int(words[1])
    except (OSError, ValueError):
        pass  # another system than Linux, or a group that has just gone
    return None
