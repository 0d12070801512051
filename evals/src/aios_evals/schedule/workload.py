"""Programs to schedule: recorded coding-agent sessions, arrivals, and small random ones for tests.

Sessions: callanjfox/kv-cache-tester (Apache-2.0), compacted as `sessions.jsonl.gz`. A session is cut before its first
call whose prompt and answer exceed the window, and left out when nothing remains; think times are capped. Sub-agents
run as children: they start when the call before them has ended, and the next call of the parent waits for their end.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_kernel.errors import NotFound
from aios_kernel.syscalls import Priority

WINDOW = 131_072
THINK_CAP_S = 60.0
SESSIONS = "sessions.jsonl.gz"
PARTS = ("first", "last")
_TOOL_OF_STOP = {"tool_use": "tool", "end_turn": "user"}


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM call of a program. Counts are in tokens."""

    prompt: int
    output: int
    shared: int
    """Prefix of the prompt that the program's previous call computed."""
    think_s: float = 0.0
    """Between the previous answer and this call."""
    tool: str = "tool"
    """What the program pauses on after this call."""
    children: tuple[Program, ...] = ()
    """Sub-agents that run before this call."""

    @property
    def new(self) -> int:
        """Prompt tokens that no cache could have."""
        return self.prompt - self.shared


@dataclass(frozen=True, slots=True)
class Program:
    """One run of an agent: calls that follow each other."""

    name: str
    calls: tuple[Call, ...]
    agent: str = "coder"
    priority: Priority = "normal"

    def family(self) -> Iterable[Program]:
        """The program and everything below it."""
        yield self
        for call in self.calls:
            for child in call.children:
                yield from child.family()


def load_sessions(folder: Path, count: int, *, think_cap_s: float = THINK_CAP_S, part: str = "first") -> list[Program]:
    """The first or last `count` sessions with a call inside the window. Raises NotFound when the file is not there."""
    path = folder / SESSIONS
    if not path.exists():
        raise NotFound(
            f"{path} is not there: recorded coding-agent sessions, callanjfox/kv-cache-tester (Apache-2.0), compacted",
            fix="--trace DIR with the folder that holds it, or AIOS_DATA=DIR with agent_sessions/ below it",
        )
    found: list[Program] = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if len(found) == count and part == "first":
                break
            row = json.loads(line)
            program = _program(row["id"], row["calls"], think_cap_s)
            if program is not None:
                found.append(program)
    return found[-count:]


def _program(name: str, rows: Sequence[Any], think_cap_s: float) -> Program | None:
    """A recorded session; None when its first call is already too long."""
    calls: list[Call] = []
    plain: list[Any] = []
    children: list[Program] = []
    for row in rows:
        if isinstance(row, dict):
            child = _program(f"{name}/{len(children)}@{len(calls)}", row["subagent"], think_cap_s)
            children += [child] if child is not None and calls else []
            continue
        _, prompt, output, _, _, think_s, _, stop = row
        if prompt + output > WINDOW:
            break
        plain.append(row)
        shared = min(_shared(plain), prompt - 1)
        think_s = min(think_s, think_cap_s) if calls else 0.0
        tool = _TOOL_OF_STOP.get(stop, "other")
        calls.append(Call(prompt, max(1, output), shared, think_s, tool, tuple(children)))
        children = []
    return Program(name, tuple(calls)) if calls else None


def _shared(rows: Sequence[Any]) -> int:
    """How much of the last call's prompt the call before it holds: through their nearest common ancestor."""
    last = len(rows) - 1
    ours = _line(rows, last)
    best, shared = last - 1, None
    line = _line(rows, last - 1) if last else {}
    for ancestor, common in ours.items():
        if ancestor in line:
            shared = min(common, line[ancestor])
            best = ancestor
            break
    return shared if shared is not None and best >= 0 else 0


def _line(rows: Sequence[Any], index: int) -> dict[int, int]:
    """A call's ancestors, itself first, each with the prefix it has in common with the call."""
    found: dict[int, int] = {}
    common = rows[index][1] + rows[index][2]
    while index >= 0:
        found[index] = common
        common = min(common, rows[index][4])
        index = rows[index][3]
    return found


def load_arrivals(path: Path, count: int, rate_per_s: float) -> list[float]:
    """Arrival times of `count` programs: recorded requests' own gaps, scaled to a mean rate.

    Source: kvcache-ai/Mooncake FAST'25 conversation trace (Apache-2.0). Raises NotFound when the file is not there.
    """
    if not path.exists():
        raise NotFound(
            f"{path} is not there: kvcache-ai/Mooncake FAST25-release/traces/conversation_trace.jsonl (Apache-2.0)",
            fix="AIOS_DATA=DIR with mooncake/ below it, or --loop closed",
        )
    with gzip.open(path, "rt") as lines:
        stamps = [json.loads(line)["timestamp"] for line, _ in zip(lines, range(8 * count), strict=False)][::8]
    scale = count / rate_per_s / max(1, stamps[-1])
    return [stamp * scale for stamp in stamps]


def random_programs(seed: int, *, programs: int = 6, window: int = 600) -> list[Program]:
    """A small random workload: a few programs with growing contexts, some with priorities or sub-agents."""
    rng = random.Random(seed)
    return [_random_program(rng, f"p{n}", window, depth=1) for n in range(programs)]


def _random_program(rng: random.Random, name: str, window: int, depth: int) -> Program:
    calls: list[Call] = []
    length = 0
    for index in range(rng.randint(1, 6)):
        shared = rng.choice([length, length, length // 2, 0])
        prompt = shared + rng.randint(1, window // 4)
        output = rng.randint(1, 30)
        if prompt + output > window:
            break
        children = ()
        if depth and index and rng.random() < 0.15:
            children = (_random_program(rng, f"{name}/{index}", window, depth - 1),)
        think_s = rng.choice([0.0, rng.expovariate(1.0), rng.expovariate(0.05)]) if index else 0.0
        calls.append(Call(prompt, output, min(shared, prompt - 1), think_s, rng.choice(["tool", "user"]), children))
        length = prompt
    priority: Priority = rng.choice(["interactive", "normal", "normal", "batch"])
    return Program(name, tuple(calls), rng.choice(["a", "b"]), priority)
