"""A batch that decodes, each step watched: on the engine itself, or through the kernel that has it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aios_evals.step_bench.stopwatch import Spent, Stopwatch
from aios_kernel.client import AsyncClient
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

if TYPE_CHECKING:
    from aios_kernel.server.inprocess import InProcessKernel

PROMPT, NEW = 96, 48
_WORDS = 24
"""Of a question; with what the template adds about as many tokens as `PROMPT`."""

Place = tuple[Any, str, str]


def drive_engine(kernel: InProcessKernel, batch: int, steps: int) -> list[Spent]:
    """Steps of the engine of a kernel that has nothing else to do, as `aios bench engine` decodes."""
    from aios_kernel.engine.protocol import SamplingParams

    assert kernel.kernel is not None
    engine, watch = kernel.kernel.model.engine, Stopwatch()
    chooser = random.Random(1)
    with watch.watching(_engine_places(engine)):
        while len(watch.steps) < steps:
            prompts = [[chooser.randrange(engine.capabilities.vocab) for _ in range(PROMPT)] for _ in range(batch)]
            contexts = [engine.open(prompt, sampling=SamplingParams()) for prompt in prompts]
            while unfinished := [context for context in contexts if context.pending > 1]:
                engine.step([(context, PROMPT) for context in unfinished][:16])
            plan = [(context, 1) for context in contexts]
            for _ in range(NEW):
                watch.begin()
                engine.step(plan)
                watch.keep()
            for context in contexts:
                engine.release(context)
    return watch.steps


def drive_clients(kernel: InProcessKernel, batch: int, steps: int, *, stream: bool) -> list[Spent]:
    """Steps of the kernel's engine thread while `batch` clients ask one question after the other."""
    return asyncio.run(_ask(kernel, batch, steps, stream=stream))


async def _ask(kernel: InProcessKernel, batch: int, steps: int, *, stream: bool) -> list[Spent]:
    connection = await asyncio.to_thread(kernel.connect, "bench")
    client, watched = AsyncClient(connection), _Watched(kernel, batch)
    chooser = random.Random(2)
    try:
        with watched.watch.watching(watched.places()):
            watched.count_steps()
            for _ in range(4 * steps // NEW + 4):  # a question that ends early costs the others their full steps
                await asyncio.gather(*(_answer(client, _question(chooser, stream=stream)) for _ in range(batch)))
                if len(watched.watch.steps) >= steps:
                    break
    finally:
        await asyncio.to_thread(connection.close)
    return watched.watch.steps


async def _answer(client: AsyncClient, question: LlmChat) -> None:
    if not question.stream:
        assert isinstance(await client.call(question), LlmResult)
        return
    async for _ in client.stream(question):
        pass


def _question(chooser: random.Random, *, stream: bool) -> LlmChat:
    words = ["".join(chooser.choices("aeioulnrstdmkpg", k=chooser.randint(2, 9))) for _ in range(_WORDS)]
    sampling = Sampling(temperature=0.0, max_tokens=NEW)
    return LlmChat(messages=[Message("user", " ".join(words))], sampling=sampling, stream=stream)


class _Watched:
    """The engine thread of a kernel, and what its socket loop spends meanwhile.

    Args:
        kernel: in this process.
        batch: contexts in the steps that count.

    Attributes:
        watch: has the steps; each ends where the next one begins.
    """

    def __init__(self, kernel: Any, batch: int) -> None:
        loop = time.pthread_getcpuclockid(kernel._thread.ident)
        self.watch = Stopwatch({"front": lambda: time.clock_gettime(loop)})
        self._dispatcher: Any = kernel.kernel.dispatcher
        self._engine: Any = kernel.kernel.model.engine
        self._batch = batch
        self._full = False

    def places(self) -> list[Place]:
        """What makes up a step of the kernel."""
        stepper = self._dispatcher._stepper
        return [
            *_engine_places(self._engine),
            (self._engine, "step", "rest"),
            (stepper, "_accept_all", "accept"),
            (stepper, "_accept_more", "accept"),
            (stepper, "run", "schedule"),
            (self._dispatcher, "_take_orders", "orders"),
            (self._dispatcher, "_flush", "deliver"),
        ]

    def count_steps(self) -> None:
        """Keep the steps in which the whole batch decodes; to be called while the places are watched."""
        stepper = self._dispatcher._stepper
        run, step = stepper.run, self._engine.step

        def next_step() -> None:
            if self._full:
                self.watch.keep()
            self._full = False
            self.watch.begin()
            run()

        def look(plan: Sequence[tuple[Any, int]]) -> Any:
            self._full = len(plan) == self._batch and all(n_tokens == 1 for _, n_tokens in plan)
            return step(plan)

        stepper.run, self._engine.step = next_step, look  # gone when the watching ends


def _engine_places(engine: Any) -> list[Place]:
    """What makes up a step of the engine."""
    from aios_kernel.engine.torch import engine as module

    return [
        (engine, "_reserve", "reserve"),
        (module, "pack", "pack"),
        (engine._runner, "forward", "forward"),
        (module, "choose", "choose"),
        (module, "first_tokens", "choose"),
        (engine, "_settle", "settle"),
    ]
