"""`aios bench isolation`: what the isolation levels of hosted tools cost over a plain subprocess.

The same program, `/bin/true`, and the same function, at each level of this machine, in turns: round by round, so that
what else runs on the machine is shared by all. A plain subprocess is Python's `subprocess` from this process, and for
the function a bare interpreter. Processor time is that of the tool with all its helpers, the launcher and this process.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from aios_kernel.errors import Unsupported
from aios_kernel.tools.isolation.container import Container
from aios_kernel.tools.isolation.level import Job, Level, Runner
from aios_kernel.tools.isolation.places import import_path, interpreter
from aios_kernel.tools.isolation.plain import Plain
from aios_kernel.tools.isolation.sandbox import Sandbox
from aios_kernel.tools.isolation.subprocess_level import Subprocess

_TRUE = "/bin/true"
_PLAIN = "subprocess.run"
_FUNCTION = {"function": "os.path:basename", "positional": ["/a/b"], "named": {}}

_Case: TypeAlias = Callable[[], Awaitable[float]]
"""Runs once; gives the processor seconds beside those of this process."""


@dataclass(slots=True)
class _Times:
    """Of one case: seconds of each round."""

    wall_s: list[float] = field(default_factory=list[float])
    cpu_s: list[float] = field(default_factory=list[float])


def run(rounds: int = 100) -> list[dict[str, Any]]:
    """One row a case and level; levels that this machine lacks are left out."""
    runners = [Runner(level) for level in (Plain(), Subprocess(), Sandbox(), Container()) if _is_here(level)]
    try:
        return asyncio.run(_measure(runners, rounds))
    finally:
        for runner in runners:
            runner.stop()


def _is_here(level: Level) -> bool:
    try:
        level.check()
    except Unsupported:
        return False
    return True


async def _measure(runners: list[Runner], rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    function = msgspec.json.encode({"path": import_path(), **_FUNCTION})
    for name, plain, job in (
        ("command", [_TRUE], Job(argv=[_TRUE])),
        ("function", [interpreter(), "-I", "-S", "-c", "pass"], Job(stdin=function)),
    ):
        confined = [runner for runner in runners if job.argv or runner.level.name != "trusted"]
        cases = {_PLAIN: _plain(plain)} | {runner.level.name: _at_level(runner, job) for runner in confined}
        rows += _rows(name, await _in_turns(cases, rounds))
    return rows


async def _in_turns(cases: dict[str, _Case], rounds: int) -> dict[str, _Times]:
    times = {name: _Times() for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            own, began = time.process_time(), time.perf_counter()
            cpu_s = await case()
            if number:  # the first round warms up: fork servers start
                times[name].wall_s.append(time.perf_counter() - began)
                times[name].cpu_s.append(time.process_time() - own + cpu_s)
    return times


def _plain(argv: list[str]) -> _Case:
    async def case() -> float:
        before = _children_s()
        subprocess.run(argv, check=True, capture_output=True)  # noqa: ASYNC221 - its time is measured
        return _children_s() - before

    return case


def _at_level(runner: Runner, job: Job) -> _Case:
    async def case() -> float:
        before = runner.server_cpu_s()
        outcome = await runner.run(job)
        if outcome.status != 0:
            raise RuntimeError(outcome.stderr.decode(errors="replace"))
        return outcome.cpu_s + outcome.launch_cpu_s + runner.server_cpu_s() - before

    return case


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _rows(case: str, times: dict[str, _Times]) -> list[dict[str, Any]]:
    plain = times[_PLAIN]
    return [
        {
            "case": case,
            "level": level,
            "calls": len(each.wall_s),
            "best_ms": min(each.wall_s) * 1e3,
            "median_ms": statistics.median(each.wall_s) * 1e3,
            "cpu_ms": statistics.median(each.cpu_s) * 1e3,
            "over_best_ms": (min(each.wall_s) - min(plain.wall_s)) * 1e3,
            "over_median_ms": _paired(each.wall_s, plain.wall_s),
            "over_best_cpu_ms": (min(each.cpu_s) - min(plain.cpu_s)) * 1e3,
            "over_cpu_ms": _paired(each.cpu_s, plain.cpu_s),
        }
        for level, each in times.items()
    ]


def _paired(seconds: list[float], plain: list[float]) -> float:
    return statistics.median(one - other for one, other in zip(seconds, plain, strict=True)) * 1e3
