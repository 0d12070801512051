"""What a confined tool may still use."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Confinement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left to a tool above the level `trusted`; docs/isolation.md says what keeps each line.

    Attributes:
        read: absolute paths that may be read and executed, beside the system's programs and libraries.
        network: `host:port` of servers that may be reached through the kernel's proxy (HTTP, and HTTPS by CONNECT);
            `*.example.org:443` takes all names below. Levels `sandbox` and `container` only.
        memory_mb: address space of each process, in MiB.
        processes: processes and threads at a time.
        disk_mb: size of a file, and at `sandbox` and `container` of all files together, in MiB.
        output_kb: of its output what is kept, in KiB; the rest is read and dropped.
    """

    read: list[str] = []
    network: list[str] = []
    memory_mb: _Count = 1024
    processes: _Count = 64
    disk_mb: _Count = 256
    output_kb: _Count = 1024


UNSHARED = Confinement()
"""Reads nothing of the user's and reaches nobody."""
