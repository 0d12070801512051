"""The roads to the engine of one kernel: its own methods, the kernel's sessions, and the socket."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from aios_evals.overhead_bench.work import NEW
from aios_kernel.config import socket_of
from aios_kernel.syscalls import AgentSpawn, Delta, Done, LlmChat, LlmResult, Request, Syscall

if TYPE_CHECKING:
    from aios_kernel.server.inprocess import InProcessKernel


class Road(Protocol):
    """A way to have questions answered. What is done before `answer` is not measured."""

    def prepare(self, calls: Sequence[LlmChat]) -> Any:
        """Bring calls into the form that the road takes."""
        ...

    def answer(self, prepared: Any) -> None:
        """Have all of them answered at once. Raises AssertionError unless each has `NEW` tokens."""
        ...

    def first_token_s(self, prepared: Any) -> float:
        """Have one answered; seconds until its first token was there."""
        ...

    def close(self) -> None:
        """End what the road needs."""
        ...


class EngineRoad:
    """A loop that knows what is coming: prompts of many tokens first, then one token of everybody a step."""

    def __init__(self, kernel: InProcessKernel) -> None:
        assert kernel.kernel is not None
        self._codec = kernel.kernel.model.codec
        self._engine: Any = kernel.kernel.model.engine

    def prepare(self, calls: Sequence[LlmChat]) -> Any:
        """Prompts as tokens."""
        return [self._codec.encode_chat(call) for call in calls]

    def answer(self, prepared: Any) -> None:
        """See `Road.answer`."""
        self._generate(prepared)

    def first_token_s(self, prepared: Any) -> float:
        """See `Road.first_token_s`."""
        began = time.perf_counter()
        contexts = self._prefill(prepared)
        ended = time.perf_counter()
        for context in contexts:
            self._engine.release(context)
        return ended - began

    def close(self) -> None:
        """The kernel ends by itself."""

    def _generate(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        contexts = self._prefill(prompts)
        plan = [(context, 1) for context in contexts]
        for _ in range(NEW - 1):
            self._engine.step(plan)
        for context, prompt in zip(contexts, prompts, strict=True):
            assert len(context.tokens) == len(prompt) + NEW
            self._engine.release(context)
        return contexts

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        from aios_kernel.engine.protocol import SamplingParams

        engine, most = self._engine, self._engine.capabilities.max_step_tokens
        contexts = [engine.open(prompt, sampling=SamplingParams(), salt=b"bench") for prompt in prompts]
        at_once = max(1, most // max(map(len, prompts)))
        for first in range(0, len(contexts), at_once):
            engine.step([(context, context.pending) for context in contexts[first : first + at_once]])
        return contexts


class TextRoad(EngineRoad):
    """The same loop for whom the prompts are chats and the answers text, as for everybody who asks a model."""

    def prepare(self, calls: Sequence[LlmChat]) -> Any:
        """The calls themselves."""
        return calls

    def answer(self, prepared: Any) -> None:
        """See `Road.answer`."""
        prompts = [self._codec.encode_chat(call) for call in prepared]
        contexts = self._generate(prompts)
        for context, prompt in zip(contexts, prompts, strict=True):
            assert self._codec.decode(context.tokens[len(prompt) :])

    def first_token_s(self, prepared: Any) -> float:
        """See `Road.first_token_s`."""
        began = time.perf_counter()
        prompts = [self._codec.encode_chat(call) for call in prepared]
        encoded = time.perf_counter()
        return encoded - began + super().first_token_s(prompts)


class KernelRoad:
    """Sessions of the kernel as its fronts use them: programs, policy and text, but no socket and no frames."""

    def __init__(self, kernel: InProcessKernel, clients: int) -> None:
        from aios_kernel.server.runtime import principal_name

        assert kernel.kernel is not None
        self._kernel = kernel.kernel
        self._session = self._kernel.connect(principal_name(), "bench")
        self._programs = [uuid.uuid4().hex[:16] for _ in range(clients)]
        self._number = 0
        for place, program in enumerate(self._programs):
            self._run([(AgentSpawn(program=program, agent=f"client-{place}"), None)])

    def prepare(self, calls: Sequence[LlmChat]) -> list[tuple[Syscall, str]]:
        """Each call with the program that makes it."""
        return [*zip(calls, self._programs[: len(calls)], strict=True)]

    def answer(self, prepared: Sequence[tuple[Syscall, str]]) -> None:
        """See `Road.answer`."""
        for result in self._run(prepared).results:
            assert isinstance(result, LlmResult), result
            assert result.usage.completion_tokens == NEW

    def first_token_s(self, prepared: Sequence[tuple[Syscall, str]]) -> float:
        """See `Road.first_token_s`."""
        began = time.perf_counter()
        seen = self._run(prepared)
        assert seen.first_s is not None, seen.results
        return seen.first_s - began

    def close(self) -> None:
        """The session ends with the kernel."""

    def _run(self, calls: Sequence[tuple[Syscall, str | None]]) -> _Seen:
        seen = _Seen(len(calls))

        def submit() -> None:
            for call, program in calls:
                self._number += 1
                self._session.request(Request(id=self._number, call=call, program=program), seen.take)

        self._kernel.loop.call_soon_threadsafe(submit)
        seen.ended.wait()
        return seen


class _Seen:
    """What came back for several calls."""

    def __init__(self, n: int) -> None:
        self._open = n
        self.results: list[object] = []
        self.first_s: float | None = None
        self.ended = threading.Event()

    def take(self, frame: object) -> None:
        """A frame of one of them."""
        if isinstance(frame, Delta):
            self.first_s = self.first_s or time.perf_counter()
            return
        self.results.append(frame.result if isinstance(frame, Done) else frame)
        self._open -= 1
        if not self._open:
            self.ended.set()


class SocketRoad:
    """Clients in a process of their own, one connection, as an agent's process has it."""

    def __init__(self, kernel: InProcessKernel, clients: int) -> None:
        assert kernel.kernel is not None
        command = [sys.executable, "-m", "aios_evals.overhead_bench.client"]
        told = {"home": kernel.config.home, "socket": str(socket_of(kernel.config)), "clients": clients}
        self._process = subprocess.Popen(
            [*command, json.dumps(told)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answered()

    def prepare(self, calls: Sequence[LlmChat]) -> str:
        """The order that the clients get."""
        return msgspec.json.encode(calls).decode() + "\n"

    def answer(self, prepared: str) -> None:
        """See `Road.answer`."""
        tokens = self._ask(prepared)["tokens"]
        assert tokens == [NEW] * len(tokens)

    def first_token_s(self, prepared: str) -> float:
        """See `Road.first_token_s`; by the clock of the client."""
        (first_s,) = self._ask(prepared)["first_s"]
        return first_s

    def close(self) -> None:
        """Hang up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, prepared: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(prepared)
        self._process.stdin.flush()
        return self._answered()

    def _answered(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the clients ended with status {self._process.wait()}")
        return json.loads(line)
