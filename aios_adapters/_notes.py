"""`Memory`: the kernel's notes as an object, for plain programs and for agents that want more than `aios.memory`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import msgspec

from aios_adapters._agent import Runner
from aios_adapters._options import AgentOptions
from aios_adapters._scope import Scope, required
from aios_kernel import errors
from aios_kernel.syscalls import (
    AccessGrant,
    AccessRevoke,
    Count,
    Interaction,
    Interactions,
    MemoryAdd,
    MemoryDelete,
    MemoryGet,
    MemoryKeep,
    MemoryProgress,
    MemoryRecall,
    MemoryRecord,
    MemoryReindex,
    MemoryRollback,
    MemorySearch,
    MemorySpace,
    MemorySpaces,
    MemoryUpdate,
    Note,
    Notes,
    Ok,
    Result,
    Right,
    Spaces,
    Syscall,
)

R = TypeVar("R", bound=Result)

Filter: TypeAlias = Mapping[str, str | int | float | bool]

PAGE = 1000


class Memory:
    """Notes of one namespace: durable when `add` returns, found by the next `search`.

        with Memory("diary") as memory:
            memory.add("The flat in Lisbon costs 900 euros", city="Lisbon")
            memory.search("what does the flat cost?")[0].text

    Args:
        agent: who reads and writes: a name that this program goes by. None: the agent that is on here.
        namespace: whose notes; None: the agent's own, `group`: its group's, else a name such as `agent/bob`, for which
            somebody must have granted a right. Searches also take `all`, everything that the agent may read.
        group: the group of a named agent; None: the user's.
        kernel: overrides `AIOS_KERNEL`.

    The methods raise the errors of the kernel: AccessDenied, NotFound, InvalidRequest, KernelUnavailable.
    """

    def __init__(
        self,
        agent: str | None = None,
        *,
        namespace: str | None = None,
        group: str | None = None,
        kernel: str | None = None,
    ) -> None:
        self.namespace = namespace
        self._own: Scope | None = None
        if agent is not None:
            self._own, _ = Runner(AgentOptions.of(agent, {"group": group}), kernel).begin()
            if self._own is None:
                raise errors.InvalidRequest("AIOS_KERNEL is off: nobody keeps notes", fix="unset AIOS_KERNEL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the program of a named agent; the notes stay."""
        if self._own is not None:
            self._own.close()

    # --- notes --------------------------------------------------------------------------------------------------------

    def add(
        self,
        text: str,
        *,
        id: str | None = None,
        source: str | None = None,
        time_s: float | None = None,
        ttl_s: float | None = None,
        supersedes: str | None = None,
        **metadata: Any,
    ) -> Note:
        """Remember a text; gives the note, which is durable then.

        Args:
            text: what to remember.
            id: replaces the note of this id, if there is one; None makes a new note.
            source: the conversation or document that it is a piece of.
            time_s: when it happened, seconds since 1970; None: now.
            ttl_s: how many seconds it stays; None: for ever.
            supersedes: id of a note that is not true any more: it is kept, but searches find it no more.
            **metadata: JSON values to filter by.
        """
        call = MemoryAdd(text, self.namespace, metadata, id, True, source, time_s, ttl_s, supersedes)
        return self._call(call, Note)

    async def aadd(self, text: str, *, id: str | None = None, source: str | None = None, **metadata: Any) -> Note:
        """Like `add`, for asyncio."""
        return await self._scope().acall(MemoryAdd(text, self.namespace, metadata, id, source=source), Note)

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        filter: Filter | None = None,
        author: str | None = None,
        since_s: float | None = None,
        until_s: float | None = None,
        half_life_s: float | None = None,
    ) -> list[Note]:
        """The `k` notes that fit a query best.

        Args:
            query: what to look for; its meaning and its words count.
            k: how many at most.
            filter: metadata that a note must have.
            author: the agent that must have written it.
            since_s: not older than this, seconds since 1970.
            until_s: not newer.
            half_life_s: lets newer notes come first; what recency is worth halves in so many seconds.
        """
        call = MemorySearch(query, self.namespace, k, dict(filter or {}), author, since_s, until_s, half_life_s)
        return self._call(call, Notes).notes

    async def asearch(self, query: str, k: int = 5, *, filter: Filter | None = None) -> list[Note]:
        """Like `search`, for asyncio."""
        call = MemorySearch(query, self.namespace, k, dict(filter or {}))
        return (await self._scope().acall(call, Notes)).notes

    def get(self, id: str) -> Note:
        """One note; raises NotFound."""
        return self._call(MemoryGet(id, self.namespace), Note)

    def update(self, id: str, text: str | None = None, metadata: dict[str, Any] | None = None) -> Note:
        """Replace the text, the metadata or both; raises NotFound."""
        return self._call(MemoryUpdate(id, text, metadata, self.namespace), Note)

    def delete(self, id: str) -> bool:
        """Forget a note; whether there was one."""
        return self._call(MemoryDelete(id, self.namespace), Count).count > 0

    def clear(self) -> int:
        """Forget all of the namespace; how many notes there were."""
        return self._call(MemoryDelete(None, self.namespace), Count).count

    def __iter__(self) -> Iterator[Note]:
        """All notes, oldest first."""
        after: str | None = None
        while True:
            page = self._call(MemorySearch(namespace=self.namespace, k=PAGE, after=after), Notes).notes
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].id

    # --- the run's own log, short-term memory -------------------------------------------------------------------------

    def record(self, text: str, role: str = "") -> Interaction:
        """Add to the interaction log of this run, which has a budget of RAM and goes with the run."""
        return self._call(MemoryRecord(text, role), Interaction)

    def recall(self, first: int = 1, last: int | None = None, *, program: str | None = None) -> list[Interaction]:
        """Interactions `first` to `last`, counted from 1, or back from -1, the newest.

        `program` names an ended run of the same agent that kept its log; raises NotFound for others.
        """
        return self._call(MemoryRecall(first, last, program), Interactions).interactions

    def keep(self) -> None:
        """Let the interaction log outlive the run."""
        self._call(MemoryKeep(), Ok)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def spaces(self) -> list[MemorySpace]:
        """All namespaces of the user, whoever may read them, with the numbers of their notes."""
        return self._call(MemorySpaces(), Spaces).spaces

    def share(self, to: str, rights: Sequence[Right] = ("read",)) -> None:
        """Let another agent use these notes; the namespace must be the agent's own or its group's."""
        self._call(AccessGrant(to, self._named(), list(rights)), Ok)

    def unshare(self, to: str, rights: Sequence[Right] = ("read", "write")) -> None:
        """Take rights back."""
        self._call(AccessRevoke(to, self._named(), list(rights)), Ok)

    def rollback(self, agent: str, since_s: float) -> int:
        """Take back what an agent wrote here since a time (seconds since 1970); how many notes that changed.

        What others changed since then stays. A rollback is a change, too, and can be rolled back.
        """
        return self._call(MemoryRollback(agent, since_s, self.namespace), Count).count

    def reindex(self) -> MemoryProgress:
        """Let all notes of the user be embedded anew, in the background; `progress` tells how far that is."""
        return self._call(MemoryReindex(), MemoryProgress)

    def progress(self) -> MemoryProgress:
        """How many notes still wait to be embedded by the present model."""
        return self._call(MemoryReindex(start=False), MemoryProgress)

    def dump(self, path: Path) -> int:
        """Write all notes to a file, one JSON object a line; how many."""
        count = 0
        with path.open("wb") as file:
            for note in self:
                file.write(msgspec.json.encode(note) + b"\n")
                count += 1
        return count

    def load(self, path: Path) -> int:
        """Add the notes of a `dump`, those of known ids anew; how many. Raises InvalidRequest at a malformed line.

        They are notes of this agent then; when they were written before is kept as their `time_s`.
        """
        count = 0
        with path.open("rb") as file:
            for count, line in enumerate(file, 1):
                self._call(_again(self, _read(line, path, count)), Note)
        return count

    def _scope(self) -> Scope:
        return self._own or required("Memory")

    def _call(self, call: Syscall, answer: type[R]) -> R:
        return self._scope().call(call, answer)

    def _named(self) -> str:
        if self.namespace is None:
            return f"agent/{self._scope().agent}"
        if self.namespace == "group":
            group = self._scope().options.group
            if group is None:
                raise errors.InvalidRequest("the group has no name here", fix='name it, as in namespace="group/team"')
            return f"group/{group}"
        return self.namespace


def _read(line: bytes, path: Path, number: int) -> Note:
    try:
        return msgspec.json.decode(line, type=Note)
    except msgspec.DecodeError as error:
        raise errors.InvalidRequest(
            f"line {number} of {path} is no note: {error}", fix="aios memory export writes files that can be imported"
        ) from error


def _again(memory: Memory, note: Note) -> MemoryAdd:
    when = note.created_s if note.time_s is None else note.time_s
    return MemoryAdd(note.text, memory.namespace, note.metadata, note.id, note.searchable, note.source, when)
