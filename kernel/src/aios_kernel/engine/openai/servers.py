"""Several servers of one model, replicas: whole programs are given to one, where their KV stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aios_kernel.engine.openai.server import ModelServer
from aios_kernel.syscalls import Replica

_KEPT = 10_000
_GROWTH = 2_000
"""Tokens that a family counts for beside those of its context: also small ones will grow."""


@dataclass(slots=True)
class _Home:
    """Where a family is, and the tokens of its longest context."""

    server: ModelServer
    tokens: int = 0


class Servers:
    """Places families of programs, and calls where their family is. Driven by the engine's thread.

    A new family goes where the contexts of living ones are smallest, then where the fewest calls are open. It stays
    there until it ends or the server is down; then it moves, and stays at the new one, which has its KV from there on.

    Args:
        servers: of the same model; they are watched when there are several.
    """

    def __init__(self, servers: Sequence[ModelServer]) -> None:
        self.all = tuple(servers)
        self._homes: dict[str, _Home] = {}  # by family, the one heard of last at the end
        self._tokens: Counter[str] = Counter()  # of homes, by server
        self._owners: set[str] = set()
        self._open: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        for server in self.all if self.several else ():
            server.watch()

    @property
    def url(self) -> str:
        """Where they are."""
        return ",".join(server.url for server in self.all)

    @property
    def several(self) -> bool:
        """Whether there is another one to turn to."""
        return len(self.all) > 1

    def of(self, family: str, tokens: int = 0) -> ModelServer:
        """The server for a call of so many tokens. With all of them down the family stays where it is.

        The empty family is that of calls that belong to nobody. `PROGRAM/CONVERSATION` is one of many of a program.
        """
        if not family:
            return self._quietest() or self.all[0]
        if "/" in family:
            self._owners.add(family.rpartition("/")[0])
        home = self._homes.get(family)
        if home is None:
            server = self._quietest() or self.all[0]
        else:
            server = home.server if home.server.health.up else self._quietest() or home.server
        self._place(family, server, tokens)
        return server

    def another(self, family: str, lost: ModelServer) -> ModelServer | None:
        """Where a call goes on whose server failed it; its family moves there. None: there is nowhere to go."""
        home = self._homes.get(family)
        server = home.server if home is not None and home.server is not lost and home.server.health.up else None
        server = server or self._quietest(but=lost)
        if server is not None:
            self._lost[lost.url] += 1
            if family:
                self._place(family, server, 0)
        return server

    def is_up(self, but: ModelServer) -> bool:
        """Whether another one is up."""
        return self._quietest(but) is not None

    def forget(self, program: str) -> None:
        """A program has ended: its family, or the conversations of one that stands for many."""
        self._leave(program)
        if program in self._owners:
            self._owners.discard(program)
            for family in [family for family in self._homes if family.startswith(f"{program}/")]:
                self._leave(family)

    def opened(self, server: ModelServer) -> None:
        """A call was sent there."""
        self._open[server.url] += 1

    def ended(self, server: ModelServer) -> None:
        """A call there has ended, or was given up."""
        self._open[server.url] -= 1

    def homes(self) -> dict[str, str]:
        """Addresses by family; from any thread."""
        return {family: home.server.url for family, home in [*self._homes.items()]}

    def replicas(self) -> list[Replica]:
        """How each of them does; from any thread."""
        families = Counter(self.homes().values())
        return [
            Replica(each.url, each.health.up, families[each.url], self._open[each.url], self._lost[each.url])
            for each in self.all
        ]

    def close(self) -> None:
        """Close the connections to all."""
        for server in self.all:
            server.close()

    def _quietest(self, but: ModelServer | None = None) -> ModelServer | None:
        there = [server for server in self.all if server.health.up and server is not but]
        return min(there, key=lambda each: (self._tokens[each.url], self._open[each.url]), default=None)

    def _leave(self, family: str) -> None:
        home = self._homes.pop(family, None)
        if home is not None:
            self._tokens[home.server.url] -= home.tokens + _GROWTH

    def _place(self, family: str, server: ModelServer, tokens: int) -> None:
        home = self._homes.get(family)
        self._leave(family)
        tokens = max(tokens, home.tokens if home is not None else 0)
        self._homes[family] = _Home(server, tokens)
        self._tokens[server.url] += tokens + _GROWTH
        if len(self._homes) > _KEPT:
            self._leave(next(iter(self._homes)))
