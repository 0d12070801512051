"""`aios bench scale`: very many agents at once on a kernel whose model costs nothing.

The kernel runs in a process of its own on the fake engine. Agents are registered (what an idle one costs in memory is
the growth of the kernel's resident size, both before the first call), then all call at once, in rounds; the CPU of a
syscall is that of the kernel's process, its socket and its engine thread included.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import AgentExit, AgentSpawn, KernelShutdown, LlmChat, LlmResult, Message

AGENTS = (1000, 10_000)
POLICIES = ("fifo", "fair", "program")
_MODEL = "fake:max_batch=64"


def run(agents: Sequence[int] = AGENTS, policies: Sequence[str] = POLICIES, rounds: int = 2) -> list[dict[str, Any]]:
    """Rows `{policy, agents, calls, completed, wall_s, cpu_us_per_call, scheduler_us_per_call, idle_kb_per_agent}`."""
    rows: list[dict[str, Any]] = []
    for policy in policies:
        for count in agents:
            with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
                rows.append(asyncio.run(_measure(Path(home), policy, count, rounds)))
    return rows


async def _measure(home: Path, policy: str, agents: int, rounds: int) -> dict[str, Any]:
    config = Config(
        home=str(home), model=_MODEL, policy=policy, kv_tokens=1 << 22, embedder="hash", vectors="exact", grace_s=1.0
    )
    connection = await asyncio.to_thread(connect, config, client="bench")
    client, pid = AsyncClient(connection), connection.welcome.pid
    try:
        await client.call(_chat(0))
        before = _resident_kb(pid)
        await _all(client.call(AgentSpawn(program=f"p{n}", agent=f"a{n}")) for n in range(agents))
        idle = _resident_kb(pid) - before
        cpu, engine, began = _cpu_s(pid), _thread_cpu_s(pid), time.perf_counter()
        done = 0
        for _ in range(rounds):
            done += await _all(client.call(_chat(n), program=f"p{n}") for n in range(agents))
        wall, cpu, engine = time.perf_counter() - began, _cpu_s(pid) - cpu, _thread_cpu_s(pid) - engine
        ended = await _all(client.call(AgentExit(), program=f"p{n}") for n in range(agents))
    finally:
        await client.call(KernelShutdown())
        await asyncio.to_thread(connection.close)
    calls = agents * rounds
    return {
        "policy": policy,
        "agents": agents,
        "calls": calls,
        "completed": done,
        "exited": ended,
        "wall_s": wall,
        "cpu_us_per_call": cpu / calls * 1e6,
        "scheduler_us_per_call": engine / calls * 1e6,
        "idle_kb_per_agent": idle / agents,
    }


def _chat(number: int) -> LlmChat:
    return LlmChat(messages=[Message(role="user", content=f"say all right {number}")])


async def _all(calls: Any) -> int:
    """Run calls at once; gives how many ended well."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    strange = [a for a in answers if isinstance(a, BaseException) and not isinstance(a, AiosError)]
    if strange:
        raise strange[0]
    return sum(not isinstance(answer, AiosError) for answer in answers)


def _resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _cpu_s(pid: int) -> float:
    return _ticks(Path(f"/proc/{pid}/stat"))


def _thread_cpu_s(pid: int) -> float:
    """CPU of the thread that schedules and steps the engine: whatever is not the main thread (proc(5))."""
    threads = [path for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
    return max((_ticks(path / "stat") for path in threads), default=0.0)


def _ticks(path: Path) -> float:
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def all_right(answer: object) -> bool:
    """Whether this is the answer to a bench's call."""
    return isinstance(answer, LlmResult) and answer.text.startswith("all right")
