"""What a plugin hands over to have a tool hosted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from aios_kernel.syscalls import ToolSpec

Isolation: TypeAlias = Literal["trusted", "subprocess", "sandbox", "container"]
"""How far a tool is kept from the kernel. `trusted`: in its process, on a thread."""


@dataclass(frozen=True, slots=True)
class HostedTool:
    """A tool in the kernel. Plugins of the entry-point group `aios_kernel` return a list of them.

    Attributes:
        spec: name, description and JSON schema of the arguments, as the model sees them.
        run: called with the checked arguments as keywords, on a thread; may be a coroutine function. Text is returned
            as it is, anything else as JSON.
        isolation: what the tool needs; a level that this kernel does not offer is refused, never lowered.
        timeout_s: seconds a call may take; None means the kernel's default.
        expected_s: seconds a call usually takes, for the scheduler; None: it learns them.
        untrusted: what it returns may have been written by a stranger, and taints the program that reads it.
    """

    spec: ToolSpec
    run: Callable[..., object | Awaitable[object]]
    isolation: Isolation = "trusted"
    timeout_s: float | None = None
    expected_s: float | None = None
    untrusted: bool = False
