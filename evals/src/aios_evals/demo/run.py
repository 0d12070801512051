"""Running the demo: all agents at once through one kernel, then one at a time on `generate`; then what came of it."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aios_adapters as aios
from aios_adapters.cli.perfetto import write_perfetto
from aios_evals import report
from aios_evals.demo.agents import Toolbox, frameworks
from aios_evals.demo.jobs import Job, KernelNotes, PlainNotes, jobs, toolbox
from aios_evals.speedup.modes import server_mode
from aios_evals.speedup.walk import Endpoint
from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config, load, socket_of
from aios_kernel.engine.load import DEMO
from aios_kernel.syscalls import (
    KernelInfo,
    KernelPs,
    KernelShutdown,
    KernelStatus,
    KernelTrace,
    ProgramInfo,
    Programs,
    Trace,
)

TOPIC = "noted"
THREADS = 1
"""Of torch, with the kernel and without: the demo model is too small to gain from more."""


@dataclass(frozen=True, slots=True)
class Run:
    """One way through all jobs: every agent's answers, and how long all took together."""

    answers: dict[str, list[str]]
    seconds: float


@dataclass(frozen=True, slots=True)
class KernelView:
    """What the kernel knew at the end."""

    programs: list[ProgramInfo]
    status: KernelStatus
    trace: Path


def demo(each: int, trace: Path, *, baseline: bool) -> bool:
    """Run it and print it; gives whether every answer is the same with and without the kernel."""
    work = jobs(each)
    sys.stdout.write(
        f"{len(work)} agents of {len(frameworks())} frameworks, one kernel, the demo model (1.3 M weights)\n"
    )
    ours, view = asyncio.run(with_kernel(work, trace))
    _show_answers(work, ours)
    _show_table(work, view)
    plain = asyncio.run(without_kernel(work)) if baseline else None
    _show_end(ours, plain, view)
    return plain is None or plain.answers == ours.answers


async def with_kernel(
    work: Sequence[Job], trace: Path, flags: Mapping[str, object] | None = None
) -> tuple[Run, KernelView]:
    """All agents at once through a kernel of their own; `flags` override its settings."""
    with tempfile.TemporaryDirectory(prefix="aios-demo-", ignore_cleanup_errors=True) as home:
        config = load({"home": home, "kernel": "auto", "model": "demo", "threads": THREADS} | dict(flags or {}))
        connection = await asyncio.to_thread(connect, config, client="demo")
        client = AsyncClient(connection)
        await _warm_up(config)
        began = time.perf_counter()
        answers = await asyncio.gather(*(_kernel_agent(config, job)() for job in work))
        seconds = time.perf_counter() - began
        view = await _look(client, trace)
        await client.call(KernelShutdown())
        connection.close()
    return Run({job.agent: answer for job, answer in zip(work, answers, strict=True)}, seconds), view


async def _warm_up(config: Config) -> None:
    """Load what is loaded on first use, as the run without the kernel will find it loaded: loading is not compared."""

    @aios.agent(name="demo-warm-up", kernel=str(socket_of(config)))
    async def embed() -> None:
        await aios.memory.asearch("anything")

    await embed()
    for ask in frameworks().values():
        await aios.agent(ask, name="demo-warm-up", kernel=str(socket_of(config)))(["hello"], (), None)
    # Two frameworks remark on what they cannot know of a local model; neither is of use to whoever watches a demo.
    # (After their imports, which set filters of their own.)
    warnings.filterwarnings("ignore", message="Resolved model mismatch|Skipping serialization")


def _kernel_agent(config: Config, job: Job) -> Callable[[], Awaitable[list[str]]]:
    ask = frameworks()[job.framework]

    @aios.agent(name=job.agent, kernel=str(socket_of(config)))
    async def agent() -> list[str]:
        tools = toolbox(KernelNotes())
        answers = await ask(job.questions, tools, None)
        await aios.asend(job.follower, "what I know is noted", topic=TOPIC)
        await aios.areceive(topic=TOPIC, sender=job.partner)
        return answers + await ask([job.recall], tools, None)

    return agent


async def _look(client: AsyncClient, trace: Path) -> KernelView:
    table, status, spans = (
        await client.call(KernelPs()),
        await client.call(KernelInfo()),
        await client.call(KernelTrace()),
    )
    assert isinstance(table, Programs)
    assert isinstance(status, KernelStatus)
    assert isinstance(spans, Trace)
    trace.parent.mkdir(parents=True, exist_ok=True)
    write_perfetto([span for span in spans.spans if not span.agent.startswith("demo")], trace)
    return KernelView(table.programs, status, trace)


async def without_kernel(work: Sequence[Job]) -> Run:
    """The same agents one at a time, their frameworks pointed at `generate` behind a lock; loading is not counted."""
    async with server_mode(DEMO, {}, threads=THREADS) as mode:
        tools = toolbox(PlainNotes())
        answers: dict[str, list[str]] = {}
        began = time.perf_counter()
        for job in work:
            answers[job.agent] = await _plain(mode.wrap, job, job.questions, tools)
        for job in work:
            answers[job.agent] += await _plain(mode.wrap, job, [job.recall], tools)
        return Run(answers, time.perf_counter() - began)


async def _plain(
    wrap: Callable[[str, Callable[[Endpoint | None], Awaitable[list[str]]]], Callable[[], Awaitable[list[str]]]],
    job: Job,
    questions: Sequence[str],
    tools: Toolbox,
) -> list[str]:
    ask = frameworks()[job.framework]
    return await wrap(job.agent, lambda endpoint: ask(questions, tools, endpoint))()


def _show_answers(work: Sequence[Job], run: Run) -> None:
    for job in work:
        sys.stdout.write(f"\n{job.agent}\n")
        for question, answer in zip([*job.questions, job.recall], run.answers[job.agent], strict=True):
            sys.stdout.write(f"  {question}\n    {answer}\n")
    sys.stdout.write("\n")


def _show_table(work: Sequence[Job], view: KernelView) -> None:
    """A row an agent; what its framework runs inside it (`autogen-1/assistant`) is counted with it."""
    rows: list[dict[str, object]] = []
    for job in work:
        family = [p for p in view.programs if p.agent.partition("/")[0] == job.agent]
        root = next(p for p in family if p.agent == job.agent)
        rows.append(
            {
                "agent": job.agent,
                "framework": job.framework,
                "llm_calls": sum(p.llm_calls for p in family),
                "tool_calls": sum(p.tool_calls for p in family),
                "memory_calls": sum(p.memory_calls for p in family),
                "waiting_s": sum(p.queued_s for p in family),
                "turnaround_s": (root.finished_s or time.time()) - root.started_s,
            }
        )
    report.show("what the kernel saw", rows)


def _show_end(ours: Run, plain: Run | None, view: KernelView) -> None:
    computed, cached = view.status.tokens_computed, view.status.tokens_cached
    lines = [f"\nwith the kernel, all at once:          {ours.seconds:6.1f} s ({computed:,} tokens, {cached:,} cached)"]
    if plain is not None:
        same = sum(
            a == b for name in ours.answers for a, b in zip(ours.answers[name], plain.answers[name], strict=True)
        )
        total = sum(len(answers) for answers in ours.answers.values())
        lines += [
            f"the same agents on generate, in turn:  {plain.seconds:6.1f} s",
            f"ratio:                                 {plain.seconds / ours.seconds:6.1f} x",
            f"answers that are the same:             {same} of {total}",
        ]
    lines.append(f"trace (open it at ui.perfetto.dev):    {view.trace.resolve()}")
    sys.stdout.write("\n".join(lines) + "\n")
