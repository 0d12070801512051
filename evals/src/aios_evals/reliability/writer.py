"""An agent that writes all there is to write, one thing after the other, and notes what was acknowledged."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from aios_evals.reliability.ledger import NOTHING, Key, Ledger, Value
from aios_kernel.client import Client
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import (
    AccessGrant,
    AccessRevoke,
    AgentSpawn,
    LlmChat,
    MemoryAdd,
    MemoryDelete,
    MemoryKeep,
    MemoryRecord,
    MemoryRollback,
    MemoryUpdate,
    Message,
    StorageDelete,
    StoragePut,
    StorageRollback,
    Syscall,
)

_NOTES: Final = 12
_FILES: Final = 6
_VERSIONS: Final = 6
_WORDS: Final = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew")

Change: TypeAlias = dict[Key, Value]


class Writer:
    """Writes as one agent through its ledger until the kernel is gone or `stop` is set.

    Args:
        ledger: of the agent; what it holds is sure.
        client: of the kernel.
        program: id of its run.
        seed: of its choices.
    """

    def __init__(self, ledger: Ledger, client: Client, program: str, seed: int) -> None:
        self._ledger = ledger
        self._client = client
        self._program = program
        self._random = random.Random(seed)
        self._kept = False
        self.stop = threading.Event()
        self.error: AiosError | None = None
        self.fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer-{ledger.agent}", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has stopped; raises what went wrong in itself."""
        self._thread.join(60)
        if self._thread.is_alive():
            raise TimeoutError(f"a call of {self._ledger.agent} hangs")
        if self.fault is not None:
            raise self.fault

    def _run(self) -> None:
        try:
            self._client.call(AgentSpawn(program=self._program, agent=self._ledger.agent))
            while not self.stop.is_set():
                for act in self._random.sample(self.acts, len(self.acts)):
                    act()
        except AiosError as error:
            self.error = error  # the kernel has gone, or refused: what was under way stays open
        except Exception as error:  # noqa: BLE001 - told to whoever joins
            self.fault = error

    @property
    def acts(self) -> list[Callable[[], None]]:
        """Everything that it does."""
        return [self.add, self.update, self.delete, self.supersede, self.roll_back, self.put, self.put_back,
                self.remove, self.grant, self.revoke, self.record, self.chat]  # fmt: skip

    def _do(self, call: Syscall, changes: Change) -> None:
        self._ledger.begin(changes)
        self._client.call(call, program=self._program)
        self._ledger.end(changes)

    def _text(self) -> str:
        return " ".join((*self._random.choices(_WORDS, k=6), f"{self._random.getrandbits(48):x}"))

    def _note(self) -> str:
        return f"n{self._random.randrange(_NOTES)}"

    def add(self) -> None:
        """A note, new or in the place of an old one."""
        id, text = self._note(), self._text()
        self._do(MemoryAdd(text, id=id), {("note", id): (text, None)})

    def update(self) -> None:
        """The text of a note."""
        id, text = self._note(), self._text()
        if (old := self._ledger.value(("note", id))) and old[1] is None:
            self._do(MemoryUpdate(id, text=text), {("note", id): (text, None)})

    def delete(self) -> None:
        """A note."""
        id = self._note()
        if self._ledger.value(("note", id)):
            self._do(MemoryDelete(id), {("note", id): NOTHING})

    def supersede(self) -> None:
        """A note by another one: two change at once, or none."""
        old, new, text = self._note(), self._note(), self._text()
        if old != new and (was := self._ledger.value(("note", old))):
            changes: Change = {("note", old): (was[0], new), ("note", new): (text, None)}
            self._do(MemoryAdd(text, id=new, supersedes=old), changes)

    def roll_back(self) -> None:
        """What it wrote last."""
        id, text = self._note(), self._text()
        before, since_s = self._ledger.value(("note", id)), time.time()
        self._do(MemoryAdd(text, id=id), {("note", id): (text, None)})
        call = MemoryRollback(self._ledger.agent, since_s, namespace=None)
        self._do(call, {("note", id): before})

    def _path(self) -> tuple[str, Value]:
        path = f"f{self._random.randrange(_FILES)}"
        return path, self._ledger.value(("file", path))

    def put(self) -> None:
        """A version of a file."""
        path, versions = self._path()
        if len(versions) < _VERSIONS:
            data = self._random.randbytes(self._random.choice((10, 3_000, 20_000)))
            self._do(StoragePut(path, data), {("file", path): (*versions, data)})

    def put_back(self) -> None:
        """An old version of a file."""
        path, versions = self._path()
        if 0 < len(versions) < _VERSIONS:
            number = self._random.randrange(len(versions))
            self._do(StorageRollback(path, number + 1), {("file", path): (*versions, versions[number])})

    def remove(self) -> None:
        """A file with all its versions."""
        path, versions = self._path()
        if len(versions) == _VERSIONS:
            self._do(StorageDelete(path), {("file", path): NOTHING})

    def _grant(self) -> tuple[Key, str, str]:
        to, below = f"reader{self._random.randrange(2)}", f"part{self._random.randrange(3)}"
        return ("grant", f"{to} {below}"), to, f"agent/{self._ledger.agent}/{below}"

    def grant(self) -> None:
        """A part of its space to another agent."""
        key, to, space = self._grant()
        self._do(AccessGrant(to, space, ["read"]), {key: (True,)})

    def revoke(self) -> None:
        """That."""
        key, to, space = self._grant()
        self._do(AccessRevoke(to, space, ["read"]), {key: NOTHING})

    def record(self) -> None:
        """Its interaction log, once that is to be kept."""
        if not self._kept:
            self._client.call(MemoryKeep(), program=self._program)
            self._kept = True
        key: Key = ("log", self._program)
        texts = self._ledger.value(key)
        if len(texts) < 20:
            text = self._text()
            self._do(MemoryRecord(text, role="user"), {key: (*texts, text)})

    def chat(self) -> None:
        """A call of the model, which is audited and traced."""
        self._client.call(LlmChat(messages=[Message("user", "say hi")]), program=self._program)
