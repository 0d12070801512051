"""A person who approves what an MCP server lists, again and again, and notes what was acknowledged."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, final

import msgspec

from aios_evals.reliability import desk_server
from aios_evals.reliability.ledger import Value
from aios_evals.reliability.writer import Writer
from aios_kernel.syscalls import ToolApprove, ToolReview, ToolReviewed

SERVER: Final = "desk"
_MOST: Final = 6


class Desk:
    """An MCP server beside a data directory, and whether its kernels know of it.

    Args:
        home: the data directory.
    """

    def __init__(self, home: Path) -> None:
        self._tools_file = home / "tools.toml"
        self._listed = home / "desk.json"

    def open(self, known: bool) -> None:
        """Have the next kernel serve it, or not."""
        if not known:
            self._tools_file.unlink(missing_ok=True)
            return
        self._tools_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", desk_server.__file__, str(self._listed)]
        self._tools_file.write_text(f"[mcp.{SERVER}]\ncommand = {msgspec.json.encode(command).decode()}\n")

    def describe(self, tools: dict[str, str]) -> None:
        """Have it list these tools from now on, by name with their descriptions."""
        fresh = self._listed.with_suffix(".part")
        fresh.write_bytes(msgspec.json.encode(tools))
        fresh.replace(self._listed)


@final
class Approver(Writer):
    """Approves new lists of `Desk` until the kernel is gone or `stop` is set.

    Attributes:
        approved: set when the kernel has acknowledged one.
    """

    def __init__(self, desk: Desk, *writer: Any) -> None:
        self._desk = desk
        self.approved = threading.Event()
        super().__init__(*writer)

    @property
    def acts(self) -> list[Callable[[], None]]:
        """Everything that it does."""
        return [self.approve]

    def approve(self) -> None:
        """A list in the place of the last: other tools, other words; all of it is pinned, or nothing."""
        names = self._random.sample(range(_MOST), self._random.randrange(1, _MOST))
        tools = {f"t{number}": self._text() for number in sorted(names)}
        self._desk.describe(tools)
        review = self._client.call(ToolReview(SERVER), program=self._program)
        assert isinstance(review, ToolReviewed)
        self._do(ToolApprove(SERVER, review.digest), {("pins", SERVER): pinned(tools)})
        self.approved.set()


def pinned(tools: dict[str, str]) -> Value:
    """Tools as a ledger has them."""
    return tuple(sorted(tools.items()))
