"""What a confined process may read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from aios_kernel.errors import ConfigError

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Programs and libraries; on most systems all but the first are symbolic links."""

FILES = (
    "/etc/ld.so.cache", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/mime.types",
    "/etc/ssl/openssl.cnf",
)  # fmt: skip
"""What libraries read at their start; no secret is among them."""

FOLDERS = ("/etc/alternatives", "/etc/ssl/certs")
"""Where symbolic links of /usr lead, and whom TLS trusts."""

LOCALTIME = "/etc/localtime"
"""A symbolic link into /usr."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def interpreter() -> str:
    """This process' interpreter, without the symbolic links of a virtual environment."""
    return os.path.realpath(sys.executable)


def import_path() -> list[str]:
    """What the kernel's modules are imported from: the path for functions in a process of their own."""
    return [os.path.realpath(entry) for entry in sys.path if entry and os.path.exists(entry)]


def of_python() -> list[str]:
    """What an interpreter with the kernel's packages reads."""
    return outermost([os.path.realpath(sys.base_prefix), *import_path()])


def is_of_system(program: str) -> bool:
    """Whether a program lies where every confined process may read."""
    return any(_is_below(os.path.realpath(program), os.path.realpath(place)) for place in SYSTEM)


def outermost(places: Iterable[str]) -> list[str]:
    """The places without symbolic links, shortest first, and without those that lie below others."""
    kept: list[str] = []
    for place in sorted({os.path.realpath(place) for place in places}, key=lambda place: (place.count("/"), place)):
        if not any(_is_below(place, outer) for outer in kept):
            kept.append(place)
    return kept


def check(tool: str, places: Iterable[str], home: Path) -> None:
    """Raise ConfigError for a place that is not there, not absolute, or through which the kernel's data can be read."""
    for place in places:
        if not os.path.isabs(place) or not os.path.exists(place):
            raise ConfigError(
                f'tool "{tool}" is to read "{place}", which is no absolute path of something that exists',
                fix="correct it in the tools file",
            )
        data, real = os.path.realpath(home), os.path.realpath(place)
        if _is_below(data, real) or _is_below(real, data):
            raise ConfigError(
                f'tool "{tool}" is to read "{place}", where the kernel keeps its data ({home})',
                fix="give narrower places to read, or another data directory (AIOS_HOME)",
            )


def _is_below(place: str, outer: str) -> bool:
    return place == outer or place.startswith(outer.rstrip("/") + "/")
