"""Where a memory object's contents live, and in which of the agent's spaces.

The kernel keeps what lives in the process. A space must be found again by the next process, where the object is another
one; so it is told by the agent's name and by the order in which a run first uses its objects of one kind.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from aios_adapters import Scope
from aios_kernel.errors import InvalidRequest

Place: TypeAlias = Literal["kernel", "mediated", "off"]
B = TypeVar("B")
_NAME = re.compile("[A-Za-z0-9_-]{1,60}")


def place_of(scope: Scope, original: Callable[..., Any], in_process: bool, native: str) -> Place:
    """Where an access goes.

    Args:
        scope: whose access it is; the decorator's `memory=` decides.
        original: the method that was called.
        in_process: whether the object keeps its contents in this process.
        native: the module of the class whose contents the kernel can keep. A subclass's own method runs as it is: the
            native methods that it calls are hooked themselves.
    """
    mode = scope.options.memory
    if mode == "off":
        return "off"
    if not in_process or mode == "mediated":
        return "mediated"
    return "kernel" if original.__module__ == native else "off"


class Spaces(Generic[B]):
    """The kernel's copies of memory objects of one kind, by object, agent and number."""

    def __init__(self, make: Callable[[str, int], B]) -> None:
        """`make(agent, number)` gives the copy that an agent's object of that number has in the kernel."""
        self._make = make
        self._used: WeakKeyDictionary[Scope, list[Any]] = WeakKeyDictionary()
        self._copies: WeakKeyDictionary[Any, dict[Any, B]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def copy_of(self, scope: Scope, owner: Any, contents: Any) -> B:
        """The kernel's copy of an object; `contents` is what clones of the object share."""
        with self._lock:
            used = self._used.setdefault(scope, [])
            number = next((n for n, other in enumerate(used) if other is contents), len(used))
            if number == len(used):
                used.append(contents)
            copies = self._copies.setdefault(owner, {})
            key = (scope.link, scope.agent, number)
            if key not in copies:
                copies[key] = self._make(scope.agent, number)
            return copies[key]


def numbered(name: str, number: int) -> str:
    """The name of an agent's first, second, ... space of a kind."""
    return f"{name}-{number}" if number else name


def checked_name(name: str) -> str:
    """A name that can be a part of a space's. Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot name a space", fix="use 1 to 60 letters, digits, _ and -")
    return name
