"""A kernel that serves for long: whether it grows, keeps files or threads, or becomes slow.

Programs come, live through some thirty syscalls of every family and leave, many at once, over some connections; the
data that they write goes round in a ring, so that a kernel that grows keeps something that it should not.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from array import array
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from aios_evals.reliability.victim import Victim, config_of
from aios_kernel.client import AsyncClient, Connection
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import (
    AccessGrant,
    AccessRevoke,
    AgentExit,
    AgentReceive,
    AgentSend,
    AgentSpawn,
    LlmChat,
    MemoryAdd,
    MemoryGet,
    MemoryRecall,
    MemoryRecord,
    MemorySearch,
    Message,
    StorageDelete,
    StorageGet,
    StorageList,
    StoragePut,
    Syscall,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)

_CONNECTIONS: Final = 4
_AT_ONCE: Final = 8
"""Programs of a connection."""
_RING: Final = 50
"""Notes and files of an agent."""
_PARTS: Final = 10
_WARM: Final = 0.3
"""Share of the run after which memory must not grow: by then the trace has as many spans as it keeps."""


@dataclass
class Watch:
    """What was seen of the kernel's process, and of the syscalls in the order in which they ended."""

    pid: int
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    ended_s: array[float] = field(default_factory=lambda: array("d"))
    errors: list[str] = field(default_factory=list[str])
    samples: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])
    """Syscalls ended, bytes of memory, descriptors, threads, seconds of CPU."""

    def sample(self) -> None:
        """Look at the process."""
        process = Path(f"/proc/{self.pid}")
        resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        descriptors, threads = (len(os.listdir(process / kind)) for kind in ("fd", "task"))
        fields = (process / "stat").read_text().rpartition(")")[2].split()  # proc(5)
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.samples.append((len(self.latencies_s), resident, descriptors, threads, cpu_s))


def run(syscalls: int, seconds: float | None = None) -> list[dict[str, Any]]:
    """A row for each tenth of the run and one for all of it.

    Args:
        syscalls: so many...
        seconds: ...or as many as end in so many seconds, if that comes first.
    """
    with tempfile.TemporaryDirectory(prefix=".aios-soak-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        victim = Victim(config_of(Path(folder)))
        victim.start()
        try:
            assert victim.process is not None
            watch = Watch(victim.process.pid)
            asyncio.run(_live(victim, watch, syscalls, seconds))
        finally:
            victim.kill()
    return _rows(watch)


async def _live(victim: Victim, watch: Watch, syscalls: int, seconds: float | None) -> None:
    ends_at = time.monotonic() + (seconds or float("inf"))

    def over() -> bool:
        return len(watch.latencies_s) >= syscalls or time.monotonic() >= ends_at

    connections = [await asyncio.to_thread(victim.connect, f"soak{number}") for number in range(_CONNECTIONS)]
    lives = [
        _lives(Life(AsyncClient(connection), watch, f"a{number}x{place}"), over)
        for number, connection in enumerate(connections)
        for place in range(_AT_ONCE)
    ]
    async with _watched(watch):
        await asyncio.gather(*lives)
    for connection in connections:
        await asyncio.to_thread(Connection.close, connection)


async def _lives(life: Life, over: Callable[[], bool]) -> None:
    number = 0
    while not over():
        number += 1
        try:
            await life.live(number)
        except AiosError as error:
            life.watch.errors.append(str(error))
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _watched(watch: Watch) -> AsyncGenerator[None]:
    async def look() -> None:
        while True:
            watch.sample()
            await asyncio.sleep(0.5)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        watch.sample()


@final
class Life:
    """The programs of one agent, one after the other."""

    def __init__(self, client: AsyncClient, watch: Watch, agent: str) -> None:
        self.watch = watch
        self._client = client
        self._agent = agent
        self._program = ""

    async def live(self, number: int) -> None:
        """One program, from its first syscall to its last."""
        self._program = f"{self._agent}-{number}"
        await self._do(AgentSpawn(program=self._program, agent=self._agent))
        await self._write(number)
        await self._read(number)
        await self._use_tools(number)
        await self._talk()
        await self._do(AgentExit())

    async def _do(self, call: Syscall) -> Any:
        began = time.perf_counter()
        answer = await self._client.call(call, program=self._program)
        ended = time.perf_counter()
        self.watch.latencies_s.append(ended - began)
        self.watch.ended_s.append(ended)
        return answer

    async def _write(self, number: int) -> None:
        place = number % _RING
        await self._do(MemoryAdd(f"fact {number} about item {place}", id=f"n{place}"))
        if number > _RING:
            await self._do(StorageDelete(f"f{place}"))
        await self._do(StoragePut(f"f{place}", b"x" * 2_000))
        space = f"agent/{self._agent}/part{number % 3}"
        await self._do(AccessGrant("reader", space, ["read"]))
        await self._do(AccessRevoke("reader", space, ["read"]))

    async def _read(self, number: int) -> None:
        place = number % _RING
        for _ in range(3):
            await self._do(MemoryGet(f"n{place}"))
            await self._do(StorageGet(f"f{place}"))
        await self._do(MemorySearch(query=f"item {place}", k=3))
        await self._do(StorageList(prefix="f"))

    async def _use_tools(self, number: int) -> None:
        for turn in range(4):
            grant = await self._do(ToolBegin("look", call_id=f"{number}-{turn}"))
            assert isinstance(grant, ToolGrant)
            await self._do(ToolEnd(grant.grant))

    async def _talk(self) -> None:
        await self._do(AgentSend(self._agent, "news"))
        await self._do(AgentReceive())
        for _ in range(2):
            await self._do(MemoryRecord("something was said", role="user"))
        await self._do(MemoryRecall(-1))
        await self._do(LlmChat(messages=[Message("user", "say hi")]))


def _rows(watch: Watch) -> list[dict[str, Any]]:
    latencies, ended = np.array(watch.latencies_s), np.array(watch.ended_s)
    seen = np.array(watch.samples)
    edges = np.linspace(0, len(latencies), _PARTS + 1).astype(int)
    rows = [_row(str(part + 1), latencies, ended, seen, edges[part], edges[part + 1]) for part in range(_PARTS)]
    late = seen[seen[:, 0] >= _WARM * len(latencies)]
    slope = np.polyfit(late[:, 0] / 1e5, late[:, 1] / 2**20, 1)[0] if len(late) > 2 else 0.0
    whole = _row("all", latencies, ended, seen, 0, len(latencies))
    return [
        *rows,
        {
            **whole,
            "errors": len(watch.errors),
            "rss_slope_mib_per_100k": float(slope),
            "descriptors_grew": _growth(late[:, 2]),
            "threads_grew": _growth(late[:, 3]),
            "p99_last_over_first": rows[-1]["p99_ms"] / rows[0]["p99_ms"],
            "cpu_last_over_first": rows[-1]["cpu_us_per_call"] / rows[0]["cpu_us_per_call"],
        },
    ]


def _growth(seen: Any) -> int:
    """By how much the last third is above the first, as a rule: a file that is open for a moment is no growth."""
    third = len(seen) // 3 + 1
    return int(np.median(seen[-third:]) - np.median(seen[:third]))


def _row(part: str, latencies: Any, ended: Any, seen: Any, first: int, last: int) -> dict[str, Any]:
    some = latencies[first:last]
    p50, p99 = np.percentile(some, [50, 99])
    there = seen[(seen[:, 0] >= first) & (seen[:, 0] <= last)]
    there = there if len(there) else seen[-1:]
    return {
        "part": part,
        "syscalls": int(last - first),
        "per_s": float((last - first) / max(ended[last - 1] - ended[first], 1e-9)),
        "p50_ms": float(p50) * 1e3,
        "p99_ms": float(p99) * 1e3,
        "cpu_us_per_call": float(np.diff(np.interp([first, last], seen[:, 0], seen[:, 4]))[0] / (last - first) * 1e6),
        "rss_mib": float(there[-1, 1]) / 2**20,
        "descriptors": int(there[:, 2].max()),
        "threads": int(there[:, 3].max()),
    }
