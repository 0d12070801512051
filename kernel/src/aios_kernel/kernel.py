"""The kernel: one narrow road for every syscall, and the wiring of the managers behind it.

A front (socket, HTTP) opens a `Session` for a principal and calls `session.request`; frames come back through `reply`.
Everything here runs on one asyncio loop; the engine has a thread of its own, the managers have theirs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import msgspec

from aios_kernel import errors, syscalls
from aios_kernel.access import AuditEntry, Question
from aios_kernel.agents import AgentService
from aios_kernel.bookkeeping import count, resource_of
from aios_kernel.calls import OpenCall
from aios_kernel.chat.generation import Generation, combined, total_usage
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.chat.window_fit import Fitted
from aios_kernel.config import Config, home_of
from aios_kernel.context.parking import Move
from aios_kernel.context.space import swap_space
from aios_kernel.embeddings import EmbedService
from aios_kernel.engine.protocol import ExpertCaching
from aios_kernel.gathering import Gathering
from aios_kernel.guard import Guard
from aios_kernel.job_calls import JobService
from aios_kernel.managers import Managers
from aios_kernel.mcp_calls import McpService
from aios_kernel.notes import NoteService
from aios_kernel.overload import Gate
from aios_kernel.permissions import PermissionService
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.protocol import Options, Policy
from aios_kernel.session import Session
from aios_kernel.spaces import SpaceService
from aios_kernel.syscalls import (
    ABI_VERSION,
    KernelStatus,
    KernelTrace,
    LlmChat,
    LlmEmbed,
    Mark,
    Ok,
    Result,
    Span,
    ToolInvoke,
    Trace,
)
from aios_kernel.tool_calls import ToolService
from aios_kernel.trace import Tracer, marks_of, moved_span
from aios_kernel.windows import Windows

_log = logging.getLogger(__name__)
_SWEEP_S = 0.5
_PREPARERS = 4
"""Threads for templates and grammars: a grammar that takes seconds must not hold up everybody's prompts."""

Handler: TypeAlias = Callable[[OpenCall, Any], Result | Coroutine[Any, Any, Result] | None]
"""Gives the result, a coroutine that will, or None when the call ends elsewhere."""

MakePolicy: TypeAlias = Callable[[str, Options], Policy]
"""Makes a policy from its name and options; raises ConfigError."""


class Kernel:
    """Everything behind the door. Construct it on the running loop; `close` it there.

    `make_policy` serves `kernel.policy`; without it the policy stays.
    """

    def __init__(
        self,
        config: Config,
        model: LoadedModel,
        managers: Managers,
        policy: Policy,
        make_policy: MakePolicy | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.managers = managers
        self.loop = asyncio.get_running_loop()
        self.http_url: str | None = None
        self.leaves = False  # with its last client
        self.tracer = Tracer(home_of(config) / "traces" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.jsonl")
        self.dispatcher = Dispatcher(model, policy, self._deliver_soon, swap_space(config), self._moved_soon)
        self.agents = AgentService(
            observe=self.dispatcher.observe,
            drop=managers.drop,
            standings=self.dispatcher.standings,
            homes=self.dispatcher.homes,
            access=managers.access,
        )
        self.sessions: set[Session] = set()
        self.gate = Gate(config.max_open_calls)
        self.shutdown = asyncio.Event()
        self._make_policy = make_policy
        self._prepare = concurrent.futures.ThreadPoolExecutor(max_workers=_PREPARERS, thread_name_prefix="aios-prepare")
        self._chat = ChatService(model, config)
        self.guard = Guard(
            managers, self.agents.table, self.dispatcher.observe, self._chat.served_name, config.principals
        )
        self._windows = Windows(self._chat, self._prepare, self.submit, self.ended)
        self._embed = EmbedService(model, config, self.dispatcher, managers.memory.embed_texts)
        self._generations: dict[int, OpenCall] = {}
        self._gathering = Gathering(self.loop, self.dispatcher)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._began = time.time()
        self._version = importlib.metadata.version("aios-kernel")  # reads files: not at every question
        self._routes = self._wire()
        self.dispatcher.start()
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    def connect(self, principal: str, client: str = "") -> Session:
        """A session of a principal; `client` names what is at the other end. Raises KernelUnavailable at the end."""
        if self._closing:
            raise errors.KernelUnavailable("the kernel is shutting down", fix="run it again")
        session = Session(self, principal, client)
        self.sessions.add(session)
        return session

    def describe(self) -> str:
        """The kernel in one line."""
        caps = self.model.engine.capabilities
        where = f", {self.http_url}" if self.http_url else ""
        room = f"KV {caps.kv_tokens:,} tokens" if caps.step_control else f"{caps.max_batch} calls at once"
        loras = f" with {len(names)} LoRA adapters" if (names := self._chat.loras()) else ""
        return f"model {self.model.name}{loras}, policy {self.dispatcher.policy.name}, {room}{where}"

    async def close(self) -> None:
        """Cancel what is open and free everything; durable data is safe."""
        self._closing = True
        self._sweeper.cancel()
        for session in list(self.sessions):
            session.close("the kernel is shutting down")
        await asyncio.to_thread(self.dispatcher.stop)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._prepare.shutdown(wait=False, cancel_futures=True)
        self.tracer.close()
        await self.managers.close()

    # --- the road ---------------------------------------------------------------------------------------------------

    def submit(self, open_call: OpenCall, timeout_s: float | None) -> None:
        """Run a syscall; it ends exactly once through `open_call`."""
        self.gate.enter()
        self.agents.open_calls.setdefault(open_call.program.id, set()).add(open_call)
        self._set_deadline(open_call, timeout_s)
        if open_call.program.terms.is_over(open_call.call):
            open_call.fail(open_call.program.terms.late())
            return
        try:
            question = self.guard.decide(open_call)
            answer = self._route(open_call) if question is None else self._once_approved(open_call, question)
        except Exception as error:  # noqa: BLE001 - a syscall's fault ends that syscall, never the kernel
            open_call.fail(_typed(error))
            return
        if isinstance(answer, Coroutine):
            open_call.task = self._in_background(self._finish(open_call, answer))
            # A task that is cancelled before its first step never begins to await this.
            open_call.task.add_done_callback(lambda _: answer.close())
        elif answer is not None:
            open_call.finish(answer)

    def _route(self, open_call: OpenCall) -> Result | Coroutine[Any, Any, Result] | None:
        return self._routes[type(open_call.call)](open_call, open_call.call)

    async def _once_approved(self, open_call: OpenCall, question: Question) -> Result | None:
        """Run a call after a person has agreed to it; None: it has been launched, and ends elsewhere."""
        await self.guard.ask(open_call, question)
        answer = self._route(open_call)
        return await answer if isinstance(answer, Coroutine) else answer

    async def _finish(self, open_call: OpenCall, answer: Coroutine[Any, Any, Result | None]) -> None:
        try:
            result = await answer
            if result is not None:
                open_call.finish(result)
        except asyncio.CancelledError:
            open_call.fail(errors.Cancelled("the syscall was cancelled"))
        except Exception as error:  # noqa: BLE001 - as in submit
            open_call.fail(_typed(error))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _set_deadline(self, open_call: OpenCall, timeout_s: float | None) -> None:
        limit = timeout_s if timeout_s is not None else self.config.call_timeout_s or None
        ends_at_s = open_call.program.terms.ends_at_s
        left_s = None if ends_at_s is None else max(0.0, ends_at_s - time.monotonic())
        if left_s is not None and (limit is None or left_s < limit):
            self._end_in(left_s, open_call, open_call.program.terms.late())
        elif limit is not None:
            late = errors.DeadlineExceeded(f"the deadline of {limit:g} s has passed", fix="pass a longer timeout")
            self._end_in(limit, open_call, late)

    def _end_in(self, seconds: float, open_call: OpenCall, late: errors.AiosError) -> None:
        open_call.deadline_s = time.monotonic() + seconds
        open_call.timer = self.loop.call_later(max(0.0, seconds), self.end_early, open_call, late)

    def end_early(self, open_call: OpenCall, error: errors.AiosError) -> None:
        """End a call with an error before its time; its generation stops within a step."""
        open_call.fail(error)

    def ended(self, open_call: OpenCall, outcome: str) -> None:
        """Book a call that has just ended; called once for each."""
        self.gate.leave()
        self.agents.open_calls.get(open_call.program.id, set()).discard(open_call)
        self._settle(open_call)
        now = time.time()
        started = open_call.started_s or (open_call.opened_s if open_call.phase is None else now)
        ran = max(0.0, open_call.ran_until(now))  # a clock that was set back must not give time back
        queued = max(0.0, now - open_call.opened_s - ran)
        count(open_call, queued, ran)
        program, name, about = open_call.program, open_call.name, resource_of(open_call.call)
        self.managers.audit.append(
            AuditEntry(
                now,
                program.principal,
                program.agent,
                program.id,
                name,
                self._resource(open_call, about),
                outcome,
                queued,
                ran,
            )
        )
        if not name.startswith("kernel."):
            self.tracer.add(self._span(open_call, about, outcome, started, now))

    def refused(self, session: Session, syscall: str, program: str, resource: str, error: errors.AiosError) -> None:
        """Book a syscall that reached no program of its caller: it never ran, but it was tried."""
        self.managers.audit.append(
            AuditEntry(time.time(), session.principal, session.client, program, syscall, resource, error.code, 0.0, 0.0)
        )

    def _resource(self, open_call: OpenCall, name: str) -> str:
        """What a call is about, for the audit; of a hosted tool that is kept apart, also how."""
        tool = self.managers.tools.tool(name) if isinstance(open_call.call, ToolInvoke) else None
        return name if tool is None or tool.isolation == "trusted" else f"{name} ({tool.isolation})"

    def _span(self, open_call: OpenCall, about: str, outcome: str, started: float, now: float) -> Span:
        return Span(
            program=open_call.program.id,
            agent=open_call.program.agent,
            framework=open_call.program.framework,
            syscall=open_call.name,
            detail=about,
            outcome=outcome,
            queued_s=open_call.opened_s,
            started_s=started,
            ended_s=now,
            prompt_tokens=open_call.usage.prompt_tokens,
            cached_tokens=open_call.usage.cached_tokens,
            completion_tokens=open_call.usage.completion_tokens,
            diverged_tokens=sum(generation.diverged for generation in open_call.generations),
            marks=marks_of(open_call, started, self.model.engine.capabilities.kv_tokens),
        )

    # --- the model --------------------------------------------------------------------------------------------------

    def _do_chat(self, open_call: OpenCall, call: LlmChat) -> None:
        open_call.queue()
        if self._chat.is_small(call) and self._chat.fits_by_itself(call, open_call.program):
            self._launch(open_call, self._generations_of(open_call, call))
        else:
            open_call.task = self._in_background(self._prepare_and_launch(open_call, call))

    def _generations_of(self, open_call: OpenCall, call: LlmChat | Fitted) -> list[Generation]:
        return self._chat.prepare_all(self.dispatcher.next_id, call, open_call.program, open_call.deadline_s)

    async def _prepare_and_launch(self, open_call: OpenCall, call: LlmChat) -> None:
        try:
            fitted = await self._windows.fit(open_call, call)
            prepared = self.loop.run_in_executor(self._prepare, self._generations_of, open_call, fitted)
            self._launch(open_call, await prepared)
        except Exception as error:  # noqa: BLE001 - as in submit
            open_call.fail(_typed(error))

    def _launch(self, open_call: OpenCall, generations: list[Generation]) -> None:
        if open_call.ended:
            return
        open_call.generations = generations
        open_call.unended = len(generations)
        open_call.found = (len(self._generations), self.model.engine.kv_free())
        for generation in generations:
            self._generations[generation.id] = open_call
            self.dispatcher.submit(generation, more=True)
        self._gathering.note()

    def _deliver_soon(self, updates: list[Update]) -> None:
        """Called by the dispatcher's thread: one hop a step, not one a token."""
        try:
            self.loop.call_soon_threadsafe(self._deliver, updates)
        except RuntimeError:
            _log.debug("the loop is closed; %d updates have no reader", len(updates))

    def _moved_soon(self, moves: list[Move]) -> None:
        """Called by the dispatcher's thread: parked contexts have moved."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._moved, moves, time.time())

    def _moved(self, moves: list[Move], at_s: float) -> None:
        for move in moves:
            program = self.agents.table.known(move.program)
            if program is not None:
                self.tracer.add(moved_span(program, move, at_s))

    def _deliver(self, updates: list[Update]) -> None:
        for update in updates:
            open_call = self._generations.get(update.generation.id)
            if open_call is None:
                continue
            try:
                self._apply(open_call, update)
            except Exception:  # noqa: BLE001 - one answer that cannot be handed on must not cost the others theirs
                _log.exception("an update of %s was lost", open_call.name)

    def _apply(self, open_call: OpenCall, update: Update) -> None:
        generation, program = update.generation, open_call.program
        if update.preempted:
            program.account.snapshots += 1
            open_call.marks.append(Mark(time.time(), "preempt"))
            open_call.pause(time.time())
        elif update.resumed:
            open_call.marks.append(Mark(time.time(), "restore"))
            if open_call.started_s is not None:
                open_call.run(time.time())
        elif open_call.started_s is None and generation.started_s is not None:
            open_call.run(time.time() - (time.monotonic() - generation.started_s))
        assert isinstance(open_call.call, LlmChat)
        if update.delta is not None and open_call.call.stream:
            open_call.show(update.delta)
        if update.ended and generation.ended is not None:
            # Another answer may have ended on the engine's thread while its last words are still on their way here.
            open_call.unended -= 1
            if isinstance(generation.ended, errors.AiosError):
                open_call.fail(generation.ended)
            elif not open_call.unended and (result := combined(open_call.generations)) is not None:
                open_call.finish(msgspec.structs.replace(result, window=open_call.cut) if open_call.cut else result)

    def _settle(self, open_call: OpenCall) -> None:
        """Take an ended LLM call out of the books; one that ended early is stopped in the engine."""
        open_call.leave()
        if not open_call.generations:
            return
        open_call.usage = total_usage(open_call.generations)
        for generation in open_call.generations:
            del self._generations[generation.id]
            if generation.ended is None:
                self.dispatcher.cancel(generation, errors.Cancelled("the caller has gone"))

    async def _do_embed(self, open_call: OpenCall, call: LlmEmbed) -> Result:
        return await self._embed.embed(call)

    # --- the kernel itself ------------------------------------------------------------------------------------------

    def _do_info(self, open_call: OpenCall, call: syscalls.KernelInfo) -> KernelStatus:
        engine, dispatcher = self.model.engine, self.dispatcher
        return KernelStatus(
            version=self._version,
            abi=ABI_VERSION,
            pid=os.getpid(),
            home=str(home_of(self.config)),
            model=self.model.name,
            engine=engine.name,
            policy=dispatcher.policy.name,
            http=self.http_url,
            uptime_s=time.time() - self._began,
            kv_tokens=engine.capabilities.kv_tokens,
            kv_free_tokens=engine.kv_free(),
            tokens_computed=dispatcher.tokens_computed,
            tokens_cached=dispatcher.tokens_cached,
            snapshots=dispatcher.contexts.snapshots,
            trace=str(self.tracer.path),
            tokens_diverged=dispatcher.contexts.tokens_diverged,
            swap_host_bytes=dispatcher.contexts.tiers.host_bytes,
            swap_disk_bytes=dispatcher.contexts.tiers.disk_bytes,
            windows_cut=self._windows.cut,
            window_tokens_dropped=self._windows.tokens_dropped,
            experts=engine.expert_status() if isinstance(engine, ExpertCaching) else None,
            loras=self._chat.loras(),
            replicas=[*dispatcher.replicas()],
        )

    def _do_trace(self, open_call: OpenCall, call: KernelTrace) -> Trace:
        principal = open_call.program.principal
        programs = {program.id: program for program in self.agents.table.all(principal)}
        wanted = set(programs)
        if call.program is not None:
            self.agents.table.find(call.program, principal)
            wanted = {call.program}
            for program in programs.values():  # oldest first: parents before children
                if program.parent in wanted:
                    wanted.add(program.id)
        open_call.program.look_at(programs[id] for id in wanted)
        self.tracer.flush()
        return Trace(spans=self.tracer.spans(wanted))

    def _do_policy(self, open_call: OpenCall, call: syscalls.KernelPolicy) -> Ok:
        if self._make_policy is None:
            raise errors.Unsupported("this kernel was made without other policies", fix="aios serve")
        self.dispatcher.set_policy(self._make_policy(call.name, call.options))
        return Ok()

    def _do_shutdown(self, open_call: OpenCall, call: syscalls.KernelShutdown) -> Ok:
        others = len(self.sessions) - 1
        if call.if_idle and not self.leaves:
            raise errors.Busy("it was started to stay", fix="aios kill --kernel")
        if call.if_idle and others:
            raise errors.Busy(f"it has {others} other clients, and leaves after the last of them")
        self.loop.call_soon(self.shutdown.set)
        return Ok()

    def _sweep(self) -> None:
        """Twice a second: tool calls past their limit end, the trace reaches its file."""
        self._sweeper = self.loop.call_later(_SWEEP_S, self._sweep)  # first: a fault below must not end the sweeping
        self._tools.expire(time.monotonic())
        self.tracer.flush()

    def _wire(self) -> dict[type, Handler]:
        agents, spaces = self.agents, SpaceService(self.managers, self.agents.table)
        self._tools = tools = ToolService(self.managers, agents.table, self.guard.heard, self.tracer)
        return {
            LlmChat: self._do_chat,
            LlmEmbed: self._do_embed,
            syscalls.AgentSpawn: lambda open_call, call: Ok(),
            syscalls.AgentExit: agents.do_exit,
            syscalls.AgentSend: agents.do_send,
            syscalls.AgentReceive: agents.do_receive,
            syscalls.AgentWait: agents.do_wait,
            syscalls.AgentPriority: agents.do_priority,
            syscalls.KernelPs: agents.do_ps,
            syscalls.KernelKill: agents.do_kill,
            syscalls.KernelInfo: self._do_info,
            syscalls.KernelTrace: self._do_trace,
            syscalls.KernelPolicy: self._do_policy,
            syscalls.KernelShutdown: self._do_shutdown,
            **tools.routes(),
            **McpService(self.managers.tools, self.config.principals).routes(),
            **JobService(self.managers, self.guard.heard, self.guard.told).routes(),
            **spaces.routes(),
            **PermissionService(self.guard, agents.table, self.config.principals).routes(),
            **NoteService(self.managers, agents.table).routes(),
        }


def _typed(error: Exception) -> errors.AiosError:
    if isinstance(error, errors.AiosError):
        return error
    _log.exception("a syscall failed inside the kernel", exc_info=error)
    return errors.InternalError(f"the kernel failed: {type(error).__name__}: {error}", fix="aios doctor")
