"""A real kernel under random programs: every request ends once, memory comes back, the books agree.

Chats, cancels, messages, tools, exits, kills and hang-ups come in any order over real connections, with a KV pool that
holds a few contexts only.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aios_kernel.client import Client, Connection
from aios_kernel.config import Config
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AccessAudit,
    AgentExit,
    AgentPriority,
    AgentReceive,
    AgentSend,
    AgentSpawn,
    AgentWait,
    AuditRecords,
    Delta,
    Done,
    Failed,
    KernelFrame,
    KernelInfo,
    KernelKill,
    KernelPs,
    LlmChat,
    LlmResult,
    Message,
    Programs,
    Syscall,
    ToolBegin,
    ToolEnd,
    ToolGrant,
    name_of,
)

T = TypeVar("T")
PICK = st.integers(0, 1000)


@dataclass(eq=False)
class Asked:
    """A request and all frames that came for it; also the connection's sink for them."""

    call: Syscall
    program: str | None
    frames: list[KernelFrame] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    number: int = 0

    def put(self, frame: KernelFrame) -> None:
        self.frames.append(frame)
        if not isinstance(frame, Delta):
            self.ended.set()


@dataclass(eq=False)
class Line:
    """A connection, its programs and its requests."""

    connection: Connection
    programs: list[str] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def ask(self, call: Syscall, program: str | None = None, timeout_s: float | None = None) -> Asked:
        asked = Asked(call, program)
        self.asked.append(asked)
        asked.number = self.connection.submit(call, asked, program=program, timeout_s=timeout_s)
        return asked


class KernelMachine(RuleBasedStateMachine):
    """The rules; the subclasses below choose the policy."""

    policy = "fifo"
    options: dict[str, Any] = {}

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        config = Config(
            kernel="inprocess",
            home=self.folder.name,
            model="fake",
            embedder="hash",
            vectors="exact",
            kv_tokens=128,
            policy=self.policy,
            policy_options=self.options,
        )
        self.running = InProcessKernel(config)
        self.observer = Line(self.running.connect("observer"))
        self.lines: list[Line] = []
        self.closed: list[Line] = []
        self.grants: list[tuple[Line, str, Asked]] = []
        self.spawned = 0
        self.open_line()

    def teardown(self) -> None:
        if not hasattr(self, "running"):
            return
        try:
            self._check_all()
        finally:
            for line in [*self.lines, self.observer]:
                line.connection.close()
            self.running.stop()
            self.folder.cleanup()

    # --- rules ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.lines) < 3)
    @rule()
    def open_line(self) -> None:
        line = Line(self.running.connect(f"line-{self.spawned}"))
        self.lines.append(line)
        self._spawn(line, None)

    @precondition(lambda self: self.lines)
    @rule(pick=PICK, child=st.booleans())
    def spawn(self, pick: int, child: bool) -> None:
        line = self._any(self.lines, pick)
        self._spawn(line, self._any(line.programs, pick) if child and line.programs else None)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, words=st.integers(0, 90), stream=st.booleans(), timeout_s=st.sampled_from([None, 0.0, 0.002]))
    def chat(self, pick: int, words: int, stream: bool, timeout_s: float | None) -> None:
        line, program = self._any(self._programs(), pick)
        call = LlmChat(messages=[Message("user", f"think {words}")], stream=stream)
        line.ask(call, program, timeout_s)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, words=st.integers(0, 40))
    def chat_in_the_background(self, pick: int, words: int) -> None:
        """A schema is compiled off the loop: the call can be cancelled while it is prepared."""
        line, program = self._any(self._programs(), pick)
        line.ask(LlmChat(messages=[Message("user", f"think {words}")], schema={"type": "object"}), program)

    @precondition(lambda self: self.lines)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        """One of the last requests, which may have ended (no rule may depend on when it did)."""
        line = self._any(self.lines, pick)
        line.connection.cancel(self._any(line.asked[-4:], pick).number)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, other=PICK, topic=st.sampled_from(["", "t"]))
    def send(self, pick: int, other: int, topic: str) -> None:
        line, program = self._any(self._programs(), pick)
        _, to = self._any(self._programs(), other)
        line.ask(AgentSend(to=self._any([to, "agent-0"], pick), body="hello", topic=topic), program)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, timeout_s=st.sampled_from([None, 0.0, 0.005]), topic=st.sampled_from([None, "t"]))
    def receive(self, pick: int, timeout_s: float | None, topic: str | None) -> None:
        line, program = self._any(self._programs(), pick)
        line.ask(AgentReceive(topic=topic, timeout_s=timeout_s), program)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, other=PICK)
    def wait(self, pick: int, other: int) -> None:
        line, program = self._any(self._programs(), pick)
        line.ask(AgentWait(program=self._any(self._programs(), other)[1], timeout_s=0.01), program)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK)
    def tool_begin(self, pick: int) -> None:
        line, program = self._any(self._programs(), pick)
        self.grants.append((line, program, line.ask(ToolBegin(name="search"), program)))

    @precondition(lambda self: self.grants)
    @rule(pick=PICK)
    def tool_end(self, pick: int) -> None:
        line, program, begun = self._any(self.grants, pick)
        if line in self.lines and begun.ended.wait(5) and isinstance(begun.frames[-1], Done):
            grant = begun.frames[-1].result
            assert isinstance(grant, ToolGrant)
            line.ask(ToolEnd(grant=grant.grant), program)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK)
    def exit(self, pick: int) -> None:
        line, program = self._any(self._programs(), pick)
        line.ask(AgentExit(), program)

    @precondition(lambda self: self._programs())
    @rule(pick=PICK, other=PICK)
    def kill(self, pick: int, other: int) -> None:
        line, _ = self._any(self._programs(), pick)
        line.ask(KernelKill(target=self._any(self._programs(), other)[1]))

    @precondition(lambda self: self._programs())
    @rule(pick=PICK)
    def bad_requests(self, pick: int) -> None:
        line, program = self._any(self._programs(), pick)
        line.ask(LlmChat(messages=[]), program)
        line.ask(LlmChat(messages=[Message("user", "x " * 300)]), program)
        line.ask(KernelInfo(), "nobody's")
        line.ask(AgentSpawn(program=program, agent="twice"))
        line.ask(AgentPriority(priority="urgent"), program)  # type: ignore[arg-type]

    @precondition(lambda self: len(self.lines) > 1)
    @rule(pick=PICK)
    def hang_up(self, pick: int) -> None:
        line = self._any(self.lines, pick)
        self._barrier(line)  # what was sent has been read; it need not have ended
        line.connection.close()
        self.lines.remove(line)
        self.closed.append(line)

    # --- what holds -------------------------------------------------------------------------------------------------

    @invariant()
    def rows_make_sense(self) -> None:
        if not hasattr(self, "running"):
            return
        for row in self._rows():
            assert (row.state == "finished") == (row.finished_s is not None)
            if row.state != "ready":  # the engine says why; a call that it does not know yet has no reason
                assert bool(row.waiting_for) == (row.state in {"tool", "message"})
            assert min(row.queued_s, row.running_s, row.tool_s, row.message_s) >= 0

    def _check_all(self) -> None:
        for line in self.lines:
            for asked in line.asked:
                if isinstance(asked.call, AgentReceive):
                    line.connection.cancel(asked.number)
        everything = [asked for line in [*self.lines, *self.closed] for asked in line.asked]
        for asked in everything:
            assert asked.ended.wait(10), f"{asked.call} never ended"
        for line in self.lines:
            self._barrier(line)
        for asked in everything:
            self._check_frames(asked)
        status = self._eventually(self._status, lambda found: found.kv_free_tokens == found.kv_tokens)
        assert status.kv_free_tokens == status.kv_tokens == 128
        self._check_books()

    def _check_frames(self, asked: Asked) -> None:
        ends = [frame for frame in asked.frames if isinstance(frame, Done | Failed)]
        assert len(ends) == 1, f"{asked.call} ended {len(ends)} times"
        assert asked.frames[-1] is ends[0]
        if isinstance(asked.call, LlmChat) and isinstance(ends[0], Done):
            assert isinstance(ends[0].result, LlmResult)
            words = asked.call.messages[0].content.removeprefix("think ")
            assert ends[0].result.text == " ".join(f"w{n}" for n in range(int(words)))
            shown = "".join(frame.delta.text for frame in asked.frames if isinstance(frame, Delta))
            assert shown == (ends[0].result.text if asked.call.stream else "")

    def _check_books(self) -> None:
        """One audit record a syscall; the process table has nothing open."""
        asked = Counter(name_of(one.call) for line in [*self.lines, *self.closed, self.observer] for one in line.asked)
        answer = Client(self.observer.connection).call(AccessAudit(limit=1_000_000))
        assert isinstance(answer, AuditRecords)
        assert Counter(record.syscall for record in answer.records) == asked
        for row in self._rows():
            assert row.state in {"idle", "tool", "finished"}, row
        kernel = self.running.kernel
        assert kernel is not None
        assert all((p.ready, p.running, p.waits) == (0, 0, []) for p in kernel.agents.table.all(self._principal()))
        assert not any(kernel.agents.open_calls.values())

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _principal(self) -> str:
        return self.observer.connection.welcome.principal

    def _any(self, choices: list[T], pick: int) -> T:
        return choices[pick % len(choices)]

    def _programs(self) -> list[tuple[Line, str]]:
        return [(line, program) for line in self.lines for program in line.programs]

    def _spawn(self, line: Line, parent: str | None) -> None:
        program = f"p{self.spawned}"
        agent = f"agent-{self.spawned % 3}"
        self.spawned += 1
        line.programs.append(program)
        line.ask(AgentSpawn(program=program, agent=agent, parent=parent))

    def _barrier(self, line: Line) -> None:
        assert line.ask(KernelInfo()).ended.wait(10)

    def _rows(self) -> list[Any]:
        asked = self.observer.ask(KernelPs())
        assert asked.ended.wait(10)
        assert isinstance(asked.frames[-1], Done)
        assert isinstance(asked.frames[-1].result, Programs)
        return asked.frames[-1].result.programs

    def _status(self) -> Any:
        asked = self.observer.ask(KernelInfo())
        assert asked.ended.wait(10)
        assert isinstance(asked.frames[-1], Done)
        return asked.frames[-1].result

    def _eventually(self, look: Callable[[], T], good: Callable[[T], bool]) -> T:
        """A cancelled generation is stopped a step after its call has ended."""
        ends_at = time.monotonic() + 5
        while not good(found := look()) and time.monotonic() < ends_at:
            time.sleep(0.005)
        return found


class RoundRobinMachine(KernelMachine):
    """Every slice ends with a snapshot."""

    policy = "round_robin"
    options = {"quantum": 2, "slots": 2, "always_swap": True}


class LongMachine(KernelMachine):
    """The same, for longer."""


class LongRoundRobinMachine(RoundRobinMachine):
    """The same, for longer."""


SHORT = settings(
    max_examples=2, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
LONG = settings(SHORT, max_examples=20, stateful_step_count=50)
TestFifo, TestRoundRobin = KernelMachine.TestCase, RoundRobinMachine.TestCase
TestFifo.settings = TestRoundRobin.settings = SHORT
TestLong, TestLongRoundRobin = pytest.mark.slow(LongMachine.TestCase), pytest.mark.slow(LongRoundRobinMachine.TestCase)
TestLong.settings = TestLongRoundRobin.settings = LONG
