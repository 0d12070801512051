"""Short-term memory: the interactions of each running program, within a budget of RAM.

Over the budget those that were used least, by LRU-K (O'Neil, O'Neil, Weikum 1993), move to a table and come back when
they are read. A log goes with its program, unless it was declared to be kept: then it is durable as notes are.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, final

import apsw
import msgspec

from aios_kernel._database import Database
from aios_kernel.errors import AiosError, InvalidRequest, NotFound
from aios_kernel.failpoints import failpoint
from aios_kernel.memory.checks import check_note
from aios_kernel.syscalls import Interaction

_K: Final = 2
_OVERHEAD: Final = 200
"""Bytes that an interaction takes beside its text."""
_ROOM: Final = 0.9
"""Share of the budget that is left in use when something must move: not one by one."""


Owner: TypeAlias = tuple[str, str, str]
"""Whose log it is: principal, agent, program."""


@final
class _Item:
    """An interaction in RAM, and when it was last used, by a counter; the oldest of the last K uses first."""

    __slots__ = ("interaction", "uses")

    def __init__(self, interaction: Interaction, now: int) -> None:
        self.interaction = interaction
        self.uses: deque[int] = deque([now], maxlen=_K)

    @property
    def worth(self) -> tuple[int, int]:
        """What was used fewer than K times goes first, then what was used K times longest ago."""
        return (self.uses[0] if len(self.uses) == _K else -1, self.uses[-1])


@final
class _Log:
    def __init__(self) -> None:
        self.here: dict[int, _Item] = {}
        self.size = 0
        self.count = 0
        self.keep = False
        self.lock = asyncio.Lock()  # moves and reads of one log do not overlap


@final
class ShortTerm:
    """The logs of all programs; for one event loop.

    Args:
        db: has the table `interactions`.
        budget_bytes: RAM for the log of one program.
    """

    def __init__(self, db: Database, budget_bytes: int) -> None:
        self._db = db
        self._budget = budget_bytes
        self._logs: dict[Owner, _Log] = {}
        self._uses = 0

    async def record(self, owner: Owner, role: str, text: str) -> Interaction:
        """Add an interaction to a program's log; gives it with its number, counted from 1."""
        if len(check_note(role)) > 100:
            raise InvalidRequest("the role is longer than 100 characters", fix="name who spoke, such as user or tool")
        if _size(check_note(text)) > self._budget:
            raise InvalidRequest(f"the text is larger than the log ({self._budget:,} bytes)", fix="raise log_bytes")
        log = self._logs.setdefault(owner, _Log())
        async with log.lock:
            await self._make_room(owner, log, _size(text))
            made = Interaction(log.count + 1, role, text, time.time())
            if log.keep:
                await self._write(owner, [made])
            log.count += 1  # only now: one that could not be written leaves no hole
            self._put(log, made)
        return made

    async def recall(self, owner: Owner, first: int, last: int | None) -> list[Interaction]:
        """Interactions `first` to `last`, counted from 1 or, below 0, from the newest (-1); those that moved return.

        Raises:
            NotFound: that program has no log: it wrote none, or it ended and was not to be kept.
        """
        log = self._logs.get(owner)
        if log is None:
            return await self._kept(owner, first, last)
        async with log.lock:
            wanted = _span(first, last, log.count)
            moved = [number for number in wanted if number not in log.here]
            found = {one.number: one for one in await self._read(owner, moved)} if moved else {}
            for number in wanted:
                if number in found:
                    self._put(log, found[number])
                else:
                    self._use(log.here[number])
                    found[number] = log.here[number].interaction
            try:
                await self._make_room(owner, log)
            except AiosError:  # a disk that refuses costs no reader what is there
                self._let_go(log, moved)
            return [found[number] for number in wanted]

    async def keep(self, owner: Owner) -> None:
        """Let a log outlive its program: what it has and gets is durable from now on."""
        log = self._logs.setdefault(owner, _Log())
        async with log.lock:
            await self._db.write(lambda db: _mark(db, owner))
            await self._write(owner, [item.interaction for item in log.here.values()])
            log.keep = True

    async def end(self, owner: Owner) -> None:
        """A program has ended: let go of its log, and drop it unless it is kept."""
        log = self._logs.get(owner)
        if log is None:
            return
        async with log.lock:
            del self._logs[owner]
            if not log.keep:
                await self._db.write(lambda db: _drop(db, owner))

    def sizes(self) -> tuple[int, int]:
        """Bytes of the logs in RAM, and how many interactions they have there."""
        logs = self._logs.values()
        return sum(log.size for log in logs), sum(len(log.here) for log in logs)

    def _put(self, log: _Log, interaction: Interaction) -> None:
        self._uses += 1
        log.here[interaction.number] = _Item(interaction, self._uses)
        log.size += _size(interaction.text)

    def _use(self, item: _Item) -> None:
        self._uses += 1
        item.uses.append(self._uses)

    async def _make_room(self, owner: Owner, log: _Log, coming: int = 0) -> None:
        """Move out what must, so that `coming` bytes more are within the budget."""
        if log.size + coming <= self._budget:
            return
        going: list[int] = []
        left = log.size + coming
        for number, item in sorted(log.here.items(), key=lambda entry: entry[1].worth):
            if left <= _ROOM * self._budget:
                break
            going.append(number)
            left -= _size(item.interaction.text)
        await self._write(owner, [log.here[number].interaction for number in going])
        self._let_go(log, going)  # only now: one that could not be written stays

    def _let_go(self, log: _Log, numbers: Sequence[int]) -> None:
        for number in numbers:
            log.size -= _size(log.here.pop(number).interaction.text)

    async def _write(self, owner: Owner, interactions: Sequence[Interaction]) -> None:
        rows = [(*owner, one.number, one.role, one.text, one.at_s) for one in interactions]

        def write(db: apsw.Connection) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO interactions (principal, agent, program, number, role, text, at_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            failpoint("memory.logged")

        await self._db.write(write)

    async def _read(self, owner: Owner, numbers: Sequence[int]) -> list[Interaction]:
        def read(db: apsw.Connection) -> list[Interaction]:
            rows = db.execute(
                "SELECT number, role, text, at_s FROM interactions WHERE principal = ? AND agent = ? AND program = ?"
                " AND number IN (SELECT value FROM json_each(?)) ORDER BY number",
                (*owner, msgspec.json.encode(list(numbers)).decode()),
            )
            return [Interaction(*_typed(row)) for row in rows]

        return await self._db.read(read)

    async def _kept(self, owner: Owner, first: int, last: int | None) -> list[Interaction]:
        count = await self._db.read(
            lambda db: db.execute(
                "SELECT max(number) FROM interactions WHERE principal = ? AND agent = ? AND program = ?", owner
            ).fetchone()
        )
        if count is None or count[0] is None:
            raise NotFound(
                f"program {owner[2]} of agent {owner[1]} has no log",
                agent=owner[1],
                fix="call memory.keep before the program ends",
            )
        return await self._read(owner, _span(first, last, int(count[0])))


def forget_orphans(db: apsw.Connection) -> None:
    """At a kernel's start: logs of programs that a killed kernel ran, and that were not to be kept, have no reader."""
    db.execute(
        "DELETE FROM interactions WHERE (principal, agent, program) NOT IN"
        " (SELECT principal, agent, program FROM kept_logs)"
    )


def _mark(db: apsw.Connection, owner: Owner) -> None:
    db.execute("INSERT OR IGNORE INTO kept_logs (principal, agent, program) VALUES (?, ?, ?)", owner)
    failpoint("memory.kept")


def _drop(db: apsw.Connection, owner: Owner) -> None:
    db.execute("DELETE FROM interactions WHERE principal = ? AND agent = ? AND program = ?", owner)


def _span(first: int, last: int | None, count: int) -> list[int]:
    begin = first if first > 0 else max(1, count + 1 + first)
    end = count if last is None else last if last > 0 else count + 1 + last
    return list(range(begin, min(end, count) + 1))


def _size(text: str) -> int:
    return len(text.encode()) + _OVERHEAD


def _typed(row: tuple[Any, ...]) -> tuple[int, str, str, float]:
    number, role, text, at_s = row
    return int(number), str(role), str(text), float(at_s)
