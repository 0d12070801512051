"""The process table: programs (one run of an agent each), their states and their accounts."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aios_kernel import errors
from aios_kernel.access import Subject
from aios_kernel.syscalls import AgentSpawn, Priority, ProgramInfo, ProgramState, WindowStrategy
from aios_kernel.terms import Terms

NAMELESS = "http"
"""The agent of HTTP requests that name none: all of them are one program, and many conversations."""
_FINISHED_KEPT = 1000
_NAME_LIMIT = 200
_SOURCES = 100
"""Of a taint, as many are told apart; more add nothing to being tainted."""


@dataclass(slots=True)
class Account:
    """What a program used so far; times in seconds, tokens as the model counts them."""

    llm_calls: int = 0
    tool_calls: int = 0
    memory_calls: int = 0
    storage_calls: int = 0
    other_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_s: float = 0.0
    running_s: float = 0.0
    tool_s: float = 0.0
    message_s: float = 0.0
    snapshots: int = 0
    service_tokens: int = 0
    """Tokens that went through the model for it: its attained service."""


@dataclass(slots=True)
class Standing:
    """What a program has in the engine now, parked contexts included; tokens of KV."""

    resident_tokens: int = 0
    swapped_tokens: int = 0
    waiting_for: str = ""
    """Why its calls do not run."""


@dataclass(slots=True)
class Program:
    """One run of an agent. Its state follows from what it has open."""

    id: str
    agent: str
    principal: str
    group: str
    framework: str = ""
    priority: Priority = "normal"
    parent: str | None = None
    above: Program | None = None
    """The parent itself."""
    window: WindowStrategy | None = None
    """For its chats; None: the kernel's."""
    terms: Terms = field(default_factory=Terms)
    """Tokens, time and tools that it may use."""
    root: str = ""
    """The program at the top of its family; empty: itself."""
    session: int = 0
    terminal: bool = False
    """Whether it is a connection's own, which named no agent: a person at a terminal."""
    started_s: float = field(default_factory=time.time)
    finished_s: float | None = None
    error: str | None = None
    account: Account = field(default_factory=Account)
    ready: int = 0
    running: int = 0
    tools: dict[str, str] = field(default_factory=dict[str, str])
    """Tools it is paused on, by grant."""
    jobs: dict[str, float] = field(default_factory=dict[str, float])
    """Long jobs that it waits for, or has waited for, by id; since when, as the loop's clock tells."""
    waits: list[str] = field(default_factory=list[str])
    """What it waits for from other agents, or from a person."""
    taint: dict[str, None] = field(default_factory=dict[str, None])
    """Where untrusted content that has reached it comes from."""
    contained: bool = False
    """Whether its taint stays with it, by the policy."""
    answers: dict[tuple[str, str, str], bool] = field(default_factory=dict[tuple[str, str, str], bool])
    """What a person answered for its whole run, by rule, right and resource."""

    def chain(self) -> tuple[Subject, ...]:
        """It and the programs that it runs below, as access sees them; itself first."""
        found: list[Subject] = []
        program: Program | None = self
        while program is not None:
            found.append(Subject(program.principal, program.group, program.agent, program.framework))
            program = program.above
        return tuple(found)

    def mark(self, sources: Iterable[str]) -> None:
        """Untrusted content of these sources has reached it, and with its results those that it runs below."""
        new = [source for source in sources if source not in self.taint]
        program: Program | None = self
        while new and program is not None:
            for source in new[: max(0, _SOURCES - len(program.taint))]:
                program.taint[source] = None
            program = None if program.contained else program.above

    def look_at(self, others: Iterable[Program]) -> None:
        """It reads about other runs: names, topics and errors are text that those have chosen, perhaps as told.

        A terminal is a person's, who obeys no page.
        """
        if not self.terminal:
            for other in others:
                if other is not self and not other.contained:
                    self.mark(other.taint)

    @property
    def state(self) -> ProgramState:
        """`running` on the model, `ready` (queued for it), on a `tool`, on a `message`, `idle` (its own code)."""
        if self.finished_s is not None:
            return "finished"
        if self.running:
            return "running"
        if self.ready:
            return "ready"
        if self.tools:
            return "tool"
        return "message" if self.waits else "idle"

    @property
    def waiting_for(self) -> str:
        """The tools or messages it waits for, in words."""
        if self.state == "tool":
            return ", ".join(self.tools.values())
        return ", ".join(self.waits) if self.state == "message" else ""

    def info(self, standing: Standing | None = None, computed: int = 0, replica: str = "") -> ProgramInfo:
        """A row for listings; `standing` is what the engine holds of it, `computed` the tokens of its open calls."""
        standing = standing or Standing()
        counts = {name: getattr(self.account, name) for name in Account.__dataclass_fields__}
        counts["service_tokens"] += computed
        return ProgramInfo(
            program=self.id,
            agent=self.agent,
            framework=self.framework,
            group=self.group,
            principal=self.principal,
            priority=self.priority,
            parent=self.parent,
            state=self.state,
            waiting_for=standing.waiting_for if self.state == "ready" else self.waiting_for,
            started_s=self.started_s,
            finished_s=self.finished_s,
            error=self.error,
            resident_tokens=standing.resident_tokens,
            swapped_tokens=standing.swapped_tokens,
            replica=replica,
            **counts,
        )


class ProcessTable:
    """All programs of this kernel; finished ones are kept for a while."""

    def __init__(self) -> None:
        self._alive: dict[str, Program] = {}
        self._children: dict[str, dict[str, None]] = {}  # of living programs
        self._finished: OrderedDict[str, Program] = OrderedDict()

    def spawn(self, call: AgentSpawn, principal: str, session: int) -> Program:
        """Enter a program, or name the framework of one that was entered without.

        Raises InvalidRequest for a name or id that cannot be, NotFound for an unknown parent.
        """
        _check_name(call.agent, "agent name")
        _check_name(call.program, "program id")
        known = self._alive.get(call.program)
        if known is not None and (known.session, known.agent, known.framework) == (session, call.agent, ""):
            known.framework = call.framework
            return known
        if call.program in self._alive or call.program in self._finished:
            raise errors.InvalidRequest(f'program "{call.program}" exists already')
        parent = self.alive(call.parent, principal) if call.parent else None
        group = call.group or (parent.group if parent else principal)
        program = Program(
            id=call.program,
            agent=call.agent,
            principal=principal,
            group=group,
            framework=call.framework or (parent.framework if parent else ""),
            priority=call.priority,
            parent=call.parent,
            above=parent,
            window=call.window or (parent.window if parent else None),
            terms=(parent.terms if parent else Terms()).below(call),
            root=(parent.root or parent.id) if parent else "",
            session=session,
            taint=dict(parent.taint) if parent else {},
        )
        self._alive[program.id] = program
        if program.parent is not None:
            self._children.setdefault(program.parent, {})[program.id] = None
        return program

    def alive(self, program_id: str, principal: str) -> Program:
        """A living program of this principal; NotFound otherwise (also for somebody else's)."""
        program = self._alive.get(program_id)
        if program is None or program.principal != principal:
            raise errors.NotFound(f'no running program "{program_id}"', fix="aios ps")
        return program

    def find(self, program_id: str, principal: str) -> Program:
        """A program of this principal, living or finished; NotFound otherwise."""
        program = self._alive.get(program_id) or self._finished.get(program_id)
        if program is None or program.principal != principal:
            raise errors.NotFound(f'no program "{program_id}"', fix="aios ps")
        return program

    def known(self, program_id: str) -> Program | None:
        """A program, living or finished, whoever's it is; for the kernel itself."""
        return self._alive.get(program_id) or self._finished.get(program_id)

    def has_finished(self, program_id: str, principal: str) -> bool:
        """Whether this is the id of a program of this principal that has ended."""
        program = self._finished.get(program_id)
        return program is not None and program.principal == principal

    def named(self, agent: str, principal: str) -> list[Program]:
        """The living programs of an agent's name, newest first."""
        return [p for p in reversed(self._alive.values()) if p.agent == agent and p.principal == principal]

    def family(self, program: Program) -> list[Program]:
        """A program and its living descendants."""
        found = [program]
        for member in found:
            found.extend(self._alive[child] for child in self._children.get(member.id, ()) if child in self._alive)
        return found

    def of_session(self, session: int) -> list[Program]:
        """The living programs that a connection registered."""
        return [program for program in self._alive.values() if program.session == session]

    def holding(self, grant: str) -> list[Program]:
        """The living program that is paused under a tool grant, if there is one."""
        return [program for program in self._alive.values() if grant in program.tools]

    def finish(self, program: Program, error: str | None) -> None:
        """Move a program to the finished ones."""
        if self._alive.pop(program.id, None) is None:
            return
        self._children.pop(program.id, None)
        if program.parent is not None:
            self._children.get(program.parent, {}).pop(program.id, None)
        program.finished_s = time.time()
        program.error = error
        self._finished[program.id] = program
        while len(self._finished) > _FINISHED_KEPT:
            self._finished.popitem(last=False)

    def all(self, principal: str, *, finished: bool = True) -> Iterator[Program]:
        """A principal's programs, oldest first."""
        kept = [*self._finished.values()] if finished else []
        yield from sorted(
            (p for p in [*kept, *self._alive.values()] if p.principal == principal), key=lambda p: p.started_s
        )


def _check_name(name: str, what: str) -> None:
    if not name or len(name) > _NAME_LIMIT or "\x00" in name:
        raise errors.InvalidRequest(f"the {what} must have 1 to {_NAME_LIMIT} characters", fix="choose another name")
