"""Calls that wait for a person: asked, answered once, or decided by the rule's default when nobody answers in time.

Nothing of this is written down: with the kernel everything that waits is denied.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, final

import msgspec

from aios_kernel.access.policy_file import Approving
from aios_kernel.access.redaction import redacted
from aios_kernel.access.subject import Question, Subject
from aios_kernel.errors import AccessDenied, Busy, NotFound
from aios_kernel.syscalls import Approval, Right

MOST_SHOWN = 2000
_NAME_SHOWN = 200
_MOST_PENDING = 1000
"""Of one principal."""


class Answer(NamedTuple):
    """How a question ended; `by` says who or what decided."""

    allow: bool
    remember: bool
    by: str


class Asker(NamedTuple):
    """The run whose call waits. `session` is its process's connection, `family` it and those around it."""

    subject: Subject
    program: str
    session: int
    taint: tuple[str, ...]
    family: frozenset[str]


class Answerer(NamedTuple):
    """Who answers, or looks at what waits."""

    principal: str
    program: str
    session: int


Heard: TypeAlias = Callable[[Approval, Answer, float], None]
"""Told how each question ended, and after how many seconds."""


@dataclass(slots=True, eq=False)
class _Open:
    approval: Approval
    asker: Asker
    answer: asyncio.Future[Answer]


@final
@dataclass(slots=True)
class Approvals:
    """What waits for a person. Used on the kernel's loop only.

    Attributes:
        rules: who may answer, by the policy of the moment.
        heard: books every answer.
    """

    rules: Callable[[], Approving]
    heard: Heard
    _open: dict[str, _Open] = field(default_factory=dict[str, _Open])
    _waiters: set[asyncio.Future[None]] = field(default_factory=set[asyncio.Future[None]])
    _numbers: int = 0

    async def ask(self, asker: Asker, right: Right, resource: str, arguments: str, question: Question) -> Answer:
        """Wait for an answer. Raises Busy when too many calls wait already."""
        waiting = sum(entry.approval.principal == asker.subject.principal for entry in self._open.values())
        if waiting >= _MOST_PENDING:
            raise Busy(f"{waiting:,} calls wait for a person already", retry_after_s=10.0, fix="aios approvals")
        self._numbers += 1
        approval = _approval(asker, right, resource, arguments, question, self._numbers)
        entry = _Open(approval, asker, asyncio.get_running_loop().create_future())
        self._open[approval.id] = entry
        self._wake()
        answer = Answer(False, False, "nobody: the call has gone")
        try:
            async with asyncio.timeout(question.timeout_s):
                answer = await entry.answer
        except TimeoutError:
            answer = Answer(question.default == "allow", False, f"nobody within {question.timeout_s:g} s")
        finally:
            del self._open[approval.id]
            self.heard(approval, answer, time.time() - approval.asked_s)
        return answer

    def pending(self, asked_by: Answerer, after: int = 0) -> list[Approval]:
        """What waits for this answerer, the oldest first."""
        return [
            entry.approval
            for entry in self._open.values()
            if entry.approval.number > after and self._refusal(entry, asked_by) is None
        ]

    async def wait(self, asked_by: Answerer, after: int) -> list[Approval]:
        """`pending`, once there is something."""
        while not (found := self.pending(asked_by, after)):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return found

    def answer(self, id: str, asked_by: Answerer, *, allow: bool, remember: bool) -> None:
        """Answer a call.

        Raises:
            NotFound: nothing of that id waits for this answerer; it may have been answered, or have run out.
            AccessDenied: the run itself, or one around it, answers.
        """
        entry = self._open.get(id)
        why = "" if entry is None else self._refusal(entry, asked_by)
        if entry is None or why == "" or entry.answer.done():
            raise NotFound(f"no call with the id {id[:40]!a} waits for an answer", fix="aios approvals")
        if why is not None:
            raise AccessDenied(why, fix="aios approvals --watch, in a terminal of your own")
        entry.answer.set_result(Answer(allow, remember, f'"{asked_by.principal}"'))

    def _refusal(self, entry: _Open, asked_by: Answerer) -> str | None:
        """Why somebody may not answer; empty: it is none of his business."""
        rules = self.rules()
        if asked_by.principal not in (rules.by if rules.by is not None else [entry.approval.principal]):
            return ""
        if asked_by.program in entry.asker.family:
            return "a run cannot approve its own calls, nor those of its parents and children"
        if not rules.own_process and asked_by.session == entry.asker.session:
            return "the policy has calls approved from outside of the process that makes them"
        return None

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _approval(asker: Asker, right: Right, resource: str, arguments: str, question: Question, number: int) -> Approval:
    subject, now = asker.subject, time.time()
    return Approval(
        id=secrets.token_hex(3),
        number=number,
        agent=printable(subject.agent),
        program=printable(asker.program),
        framework=printable(subject.framework),
        group=printable(subject.group),
        principal=subject.principal,
        right=right,
        resource=printable(resource),
        arguments=printable(redacted(arguments), MOST_SHOWN),
        taint=[printable(source) for source in asker.taint],
        rule=question.rule,
        asked_s=now,
        expires_s=now + question.timeout_s,
        default=question.default,
    )


def printable(text: str, most: int = _NAME_SHOWN) -> str:
    """Text for a person's eyes: nothing that moves a cursor, hides or turns round what stands there, and cut."""
    kept, left = text[:most], len(text) - most
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in kept)
    return f"{shown}... ({left:,} more characters)" if left > 0 else shown


def arguments_of(call: msgspec.Struct) -> str:
    """What a syscall wants to do, as text; files by their size only."""
    if isinstance(text := getattr(call, "arguments", None), str):
        return text
    fields = {name: getattr(call, name) for name in call.__struct_fields__}
    shown = {name: _size(value) if isinstance(value, bytes) else value for name, value in fields.items()}
    if "messages" in shown:
        shown = {"last_message": shown["messages"][-1] if shown["messages"] else None}
    return msgspec.json.encode(
        {name: value for name, value in shown.items() if value not in (None, "", [], {})}
    ).decode()


def _size(data: bytes) -> str:
    return f"{len(data):,} bytes"
