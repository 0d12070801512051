"""What an adapter of a framework declares: which versions it was tested with and which modules it hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from aios_adapters.patching import Patcher

VersionRange = tuple[str, str]
"""Lowest tested version and the first one that is not: `("1.4", "1.5")`."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One framework.

    Attributes:
        name: short name, also the framework's name in the process table.
        tested: tested range of each distribution that is hooked.
        hooks: installer by module name; it runs once, right after that module was imported (or at once when it is
            imported already), and patches through the `Patcher`. It must raise when a symbol has moved.
        optional: those of these modules that some tested versions do not have; another one's absence is an error.
    """

    name: str
    tested: Mapping[str, VersionRange]
    hooks: Mapping[str, Callable[[Patcher], None]]
    optional: Collection[str] = ()
