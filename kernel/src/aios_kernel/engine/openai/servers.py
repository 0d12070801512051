"""Several servers of one model: a program and its family stay at one, where their prefixes are cached."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from aios_kernel.engine.openai.server import ModelServer

_KEPT = 10_000


class Servers:
    """Picks servers. A family that is new goes where the fewest calls are open. Driven by the engine's thread."""

    def __init__(self, servers: Sequence[ModelServer]) -> None:
        self.all = tuple(servers)
        self._of: OrderedDict[str, ModelServer] = OrderedDict()  # by family, the one heard of last at the end
        self._open: Counter[str] = Counter()

    @property
    def url(self) -> str:
        """Where they are."""
        return ",".join(server.url for server in self.all)

    def of(self, family: str) -> ModelServer:
        """The server of a family."""
        server = self._of.get(family) or min(self.all, key=lambda each: self._open[each.url])
        self._of[family] = server
        self._of.move_to_end(family)
        if len(self._of) > _KEPT:
            self._of.popitem(last=False)
        return server

    def opened(self, server: ModelServer) -> None:
        """A call was sent there."""
        self._open[server.url] += 1

    def ended(self, server: ModelServer) -> None:
        """A call there has ended, or was given up."""
        self._open[server.url] -= 1

    def close(self) -> None:
        """Close the connections to all."""
        for server in self.all:
            server.close()
