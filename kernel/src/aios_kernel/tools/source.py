"""Where hosted tools come from: a fixed list, or servers whose tools come and go while the kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias, final

from aios_kernel.tools.hosted import HostedTool

Offer: TypeAlias = Callable[[Iterable[HostedTool]], None]
"""Takes all tools that a source has now, in the place of those that it had. Called on the kernel's loop.

Raises what `ToolRegistry` raises for a tool that it cannot take; then those from before stay.
"""


class ToolSource(Protocol):
    """A section of the tools file at work. Made while the kernel starts, on a thread; the rest happens on its loop."""

    def tools(self) -> Sequence[HostedTool]:
        """The tools that are known without asking anybody. Raises ConfigError for entries that cannot be served."""
        ...

    async def start(self, offer: Offer) -> None:
        """Begin to connect, in the background: the kernel's start waits for this."""
        ...

    async def close(self) -> None:
        """End processes and connections."""
        ...


@final
class FixedTools:
    """A source whose tools stay as they are."""

    def __init__(self, tools: Iterable[HostedTool]) -> None:
        self._tools = list(tools)

    def tools(self) -> Sequence[HostedTool]:
        """The tools."""
        return self._tools

    async def start(self, offer: Offer) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """Nothing to end."""
