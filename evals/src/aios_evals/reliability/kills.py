"""A kernel under load that is killed with SIGKILL, at random moments and at every failpoint, and started again.

Three agents write all kinds of things and note down, outside the kernel, what was acknowledged; in some lives a person
approves what an MCP server lists, too. After each kill the kernel is started anew: everything acknowledged must be
there, what was under way wholly or not at all, databases and audit log sound.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from aios_evals.reliability.approver import Approver, Desk
from aios_evals.reliability.inspection import damaged_databases, unsound
from aios_evals.reliability.ledger import Ledger
from aios_evals.reliability.points import POINTS, Point
from aios_evals.reliability.victim import Died, Victim, config_of
from aios_evals.reliability.writer import Writer
from aios_kernel.client import Client
from aios_kernel.errors import AiosError
from aios_kernel.failpoints import Fault
from aios_kernel.syscalls import KernelShutdown

_AGENTS: Final = 3
_LIVES: Final = 40
"""Kills of one data directory; then a new one is begun."""
_REACH_S: Final = 6.0
_WITH_DESK: Final = 0.25
"""Of the random kills, those with an MCP server: its library makes a start longer."""
_IN_FILES: Final = (".write", ".sync")


@dataclass
class Tally:
    """What the kills of one kind came to."""

    kills: int = 0
    unreached: int = 0
    acknowledged: int = 0
    approved: int = 0
    lost: int = 0
    corrupt: int = 0
    restarts_s: list[float] = field(default_factory=list[float])
    complaints: list[str] = field(default_factory=list[str])

    def row(self, case: str) -> dict[str, Any]:
        """As a row of the bench."""
        p50, p95 = np.percentile(self.restarts_s, [50, 95]) if self.restarts_s else (None, None)
        return {
            "case": case,
            "kills": self.kills,
            "acknowledged": self.acknowledged,
            "approved": self.approved,
            "lost": self.lost,
            "corrupt": self.corrupt,
            "unreached": self.unreached,
            "restart_p50_s": None if p50 is None else float(p50),
            "restart_p95_s": None if p95 is None else float(p95),
            "restart_max_s": max(self.restarts_s, default=None),
        }


def run(
    cycles: int, *, seed: int = 0, points: tuple[Point, ...] = POINTS, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[dict[str, Any]], list[str]]:
    """So many kills, half of them at random moments and half at failpoints, each in turn.

    Args:
        cycles: kills.
        seed: of the moments and the writers' choices.
        points: failpoints; those that need the torch engine are left out.
        tell: hears of what goes wrong, and now and then how far it is.

    Returns:
        A row for random kills, one for each failpoint, one for all; and what went wrong, in words.
    """
    tallies: dict[str, Tally] = {}
    turns = _turns([point for point in points if point.reached != "snapshot"], seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".aios-kills-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        house = House(Path(folder) / "0", seed)
        for cycle in range(cycles):
            point = next(turns) if cycle % 2 else None
            if (cycle and cycle % _LIVES == 0) or (point is not None and point.reached == "fresh"):
                house.leave()
                house = House(Path(folder) / str(cycle), seed + cycle)
            tally = tallies.setdefault("random" if point is None else point.name, Tally())
            before = len(tally.complaints)
            house.live_and_die(point, tally)
            for complaint in tally.complaints[before:]:
                tell(f"cycle {cycle}, {point.name if point else 'random'}: {complaint}")
            if cycle % 100 == 99:
                tell(f"{cycle + 1} kills in {time.monotonic() - began:.0f} s")
        house.leave()
    rows = [tallies[case].row(case) for case in sorted(tallies, key=lambda case: (case != "random", case))]
    return [*rows, _all(tallies.values()).row("all")], [each for one in tallies.values() for each in one.complaints]


def _turns(points: list[Point], seed: int) -> Iterator[Point]:
    rng = random.Random(seed)
    while True:
        yield from rng.sample(points, len(points))


def _all(tallies: Any) -> Tally:
    total = Tally()
    for tally in tallies:
        for name in ("kills", "unreached", "acknowledged", "approved", "lost", "corrupt"):
            setattr(total, name, getattr(total, name) + getattr(tally, name))
        total.restarts_s += tally.restarts_s
    return total


@final
class House:
    """A data directory, the agents that write into it, and the kernels that die in it."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        self._ledgers = [Ledger(f"w{number}") for number in range(_AGENTS)]
        self._approved = Ledger("person")
        self._desk = Desk(home)
        self._has_desk = False
        self._lives = 0

    def leave(self) -> None:
        """Remove it."""
        shutil.rmtree(self._home, ignore_errors=True)

    def live_and_die(self, point: Point | None, tally: Tally) -> None:
        """One kernel's life and death, and a look at what it left."""
        tally.kills += 1
        before = sum(ledger.acknowledged for ledger in self._ledgers)
        approved = self._approved.acknowledged
        self._has_desk = self._random.random() < _WITH_DESK if point is None else point.name.startswith("mcp.")
        self._desk.open(self._has_desk)
        reached = self._die(point)
        tally.unreached += not reached
        tally.acknowledged += sum(ledger.acknowledged for ledger in self._ledgers) - before
        tally.approved += self._approved.acknowledged - approved
        self._look(tally)

    def _die(self, point: Point | None) -> bool:
        """Live until the end; whether it came where it was to come."""
        victim = Victim(config_of(self._home), self._faults(point))
        try:
            victim.start()
        except Died:
            return victim.killed
        writers = self._writers(victim)
        try:
            return self._end(victim, point, writers)
        finally:
            victim.kill()
            for writer in writers:
                writer.stop.set()
                writer.join()

    def _faults(self, point: Point | None) -> dict[str, Fault]:
        if point is None or point.reached in ("backup", "restore"):
            return {}
        action = "tear" if point.name.endswith(_IN_FILES[0]) and self._random.random() < 0.5 else "kill"
        fault = Fault(action, skip=self._random.randrange(point.often))
        # Files are written at the start too: what is to happen at the end is told later.
        return {} if point.reached == "shutdown" else {point.name: fault}

    def _writers(self, victim: Victim) -> list[Writer]:
        self._lives += 1
        try:
            connections = [victim.connect(ledger.agent) for ledger in self._all]
        except AiosError:  # it is dead by now
            return []
        writers: list[Writer] = []
        for ledger, connection in zip(self._all, connections, strict=True):
            about = (ledger, Client(connection), f"{ledger.agent}-{self._lives}", self._random.getrandbits(32))
            writers.append(Approver(self._desk, *about) if ledger is self._approved else Writer(*about))
        return writers

    @property
    def _all(self) -> list[Ledger]:
        """Of those who write in this life."""
        return [*self._ledgers, *([self._approved] if self._has_desk else [])]

    def _end(self, victim: Victim, point: Point | None, writers: list[Writer]) -> bool:
        if point is None:
            time.sleep(self._random.uniform(0.0, 0.6))
            return victim.alive
        if point.reached in ("backup", "restore"):
            return _backed_up(self._home, victim, point)
        if point.reached == "shutdown":
            time.sleep(self._random.uniform(0.1, 0.4))
            for writer in writers:
                if isinstance(writer, Approver):
                    writer.approved.wait(_REACH_S)  # or there is nothing of it to be written at the end
            victim.fault({point.name: Fault("kill")})
            Client(victim.connect("end")).post(KernelShutdown())
        return victim.wait(_REACH_S) and victim.killed

    def _look(self, tally: Tally) -> None:
        victim = Victim(config_of(self._home))
        try:
            tally.restarts_s.append(victim.start())
            connection = victim.connect("look")
            client = Client(connection)
            for ledger in self._all:
                lost = ledger.compare(client, f"look-{ledger.agent}-{self._lives}")
                tally.lost += len(lost)
                tally.complaints += lost
            corrupt = unsound(self._home, client)
            connection.close()
        except (AiosError, Died, TimeoutError) as error:
            corrupt = [f"the kernel does not start or answer any more: {error!r}"]
        finally:
            victim.kill()
        tally.corrupt += len(corrupt)
        tally.complaints += corrupt


def _backed_up(home: Path, victim: Victim, point: Point) -> bool:
    """Kill a backup, or a restore of a whole one, at the point; what is left is whole or is refused."""
    copy, again = home.with_name(f"{home.name}-copy"), home.with_name(f"{home.name}-again")
    victim.fault({point.name: Fault("kill", skip=point.often - 1)})
    killed = False
    try:
        if point.reached == "backup":
            killed = _run(victim, "save", home, copy) < 0
            if point.name == "backup.saved":
                _must(_run(None, "restore", copy, again) == 0, "a backup that was named is not whole")
            else:
                _must(_run(None, "restore", copy, again) > 0, "half a backup was restored")
        else:
            _must(_run(None, "save", home, copy) == 0, "no backup can be made")
            killed = _run(victim, "restore", copy, again) < 0
            _must(_run(None, "restore", copy, again) == 0, "a restore that was killed cannot be done again")
        _must(not damaged_databases(again), "what was restored is damaged")
    finally:
        for folder in (copy, again):
            shutil.rmtree(folder, ignore_errors=True)
    return killed


def _run(victim: Victim | None, *arguments: str | Path) -> int:
    command = [sys.executable, "-m", "aios_kernel.backup", *map(str, arguments)]
    environment = None if victim is None else victim.environment
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
