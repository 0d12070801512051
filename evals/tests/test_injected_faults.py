"""Disks that are full or broken, no descriptors, no memory, slow syncs, foreign locks, a jumping clock.

Each fault meets each kind of writing syscall: the caller gets a typed error within its deadline, the kernel serves on,
and when the fault is over the same call succeeds and everything that was ever acknowledged is there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from aios_evals.reliability.inspection import unsound
from aios_evals.reliability.ledger import NOTHING, Key, Ledger, Value
from aios_evals.reliability.victim import Victim, config_of
from aios_kernel.client import Client
from aios_kernel.errors import AiosError, Busy, DeadlineExceeded, InternalError, KernelUnavailable
from aios_kernel.failpoints import Fault
from aios_kernel.syscalls import (
    AccessAudit,
    AccessGrant,
    AccessRevoke,
    AccessVerify,
    AgentReceive,
    AgentSpawn,
    AuditRecords,
    AuditVerdict,
    KernelInfo,
    KernelStatus,
    LlmChat,
    LlmResult,
    MemoryAdd,
    MemoryDelete,
    MemoryKeep,
    MemoryRecord,
    MemoryRollback,
    MemorySearch,
    MemoryUpdate,
    Message,
    Note,
    Notes,
    StorageDelete,
    StoragePut,
    StorageRollback,
    Syscall,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)

DEADLINE_S = 15.0
Change = dict[Key, Value]


class Agent:
    """One that makes a call of each kind, and can tell what it was acknowledged."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.connection = victim.connect("agent")
        self.client = Client(self.connection)
        self.ledger = Ledger("w0")
        self._numbers = itertools.count()
        self.program = "run"
        self.client.call(AgentSpawn(program=self.program, agent="w0"))
        self.client.call(MemoryKeep(), program=self.program)
        self.log: Value = ()

    def prepared(self, kind: str) -> tuple[Syscall, Change]:
        """A call of a kind that will succeed, and what it changes; what it needs is there."""
        n = str(next(self._numbers))
        note, file, grant = ("note", f"n{n}"), ("file", f"f{n}"), ("grant", f"reader part{n}")
        space = f"agent/w0/part{n}"
        if kind in ("memory.update", "memory.delete", "memory.rollback", "memory.supersede"):
            made = self.do(MemoryAdd(f"before {n}", id=f"n{n}"), {note: (f"before {n}", None)})
            assert isinstance(made, Note)
            since_s = made.created_s  # by the kernel's clock
        if kind in ("storage.rollback", "storage.delete"):
            self.do(StoragePut(f"f{n}", b"one"), {file: (b"one",)})
        if kind == "access.revoke":
            self.do(AccessGrant("reader", space, ["read"]), {grant: (True,)})
        match kind:
            case "memory.add":
                return MemoryAdd(f"new {n}", id=f"n{n}"), {note: (f"new {n}", None)}
            case "memory.supersede":
                newer = ("note", f"m{n}")
                call = MemoryAdd(f"newer {n}", id=f"m{n}", supersedes=f"n{n}")
                return call, {note: (f"before {n}", f"m{n}"), newer: (f"newer {n}", None)}
            case "memory.update":
                return MemoryUpdate(f"n{n}", text=f"after {n}"), {note: (f"after {n}", None)}
            case "memory.delete":
                return MemoryDelete(f"n{n}"), {note: NOTHING}
            case "memory.rollback":
                return MemoryRollback("w0", since_s, namespace=None), {note: NOTHING}
            case "memory.record":
                return MemoryRecord(f"said {n}"), {("log", self.program): (*self.log, f"said {n}")}
            case "storage.put":
                return StoragePut(f"f{n}", b"x" * 9_000), {file: (b"x" * 9_000,)}
            case "storage.rollback":
                return StorageRollback(f"f{n}", 1), {file: (b"one", b"one")}
            case "storage.delete":
                return StorageDelete(f"f{n}"), {file: NOTHING}
            case "access.grant":
                return AccessGrant("reader", space, ["read"]), {grant: (True,)}
            case _:
                return AccessRevoke("reader", space, ["read"]), {grant: NOTHING}

    def do(self, call: Syscall, changes: Change, deadline_s: float = DEADLINE_S) -> object:
        """A call through the ledger; gives its answer."""
        self.ledger.begin(changes)
        answer = self.client.call(call, program=self.program, timeout_s=deadline_s)
        self.ledger.end(changes)
        self.log = changes.get(("log", self.program), self.log)
        return answer

    def write_for_ever(self) -> None:
        """Files and all else, until something is refused."""
        for _, kind in itertools.cycle(CALLS):
            self.do(*self.prepared("storage.put"))
            self.do(*self.prepared(kind))

    def refused(self, call: Syscall, changes: Change, deadline_s: float = DEADLINE_S) -> AiosError:
        """The typed error of a call, which must come within its deadline."""
        began = time.monotonic()
        with pytest.raises(AiosError) as caught:
            self.do(call, changes, deadline_s)
        assert time.monotonic() - began < deadline_s + 2.0
        assert not isinstance(caught.value, KernelUnavailable)
        return caught.value

    def all_is_well(self) -> None:
        """The kernel serves, and has everything that it acknowledged, whole."""
        answer = self.client.call(LlmChat(messages=[Message("user", "say hi")]), program=self.program)
        assert isinstance(answer, LlmResult)
        assert answer.text.startswith("hi")
        look = f"look{next(self._numbers)}"
        assert self.ledger.compare(self.client, look) == []
        self.log = self.ledger.value(("log", self.program))
        assert unsound(self.victim.home, self.client) == []


KINDS = {
    "memory": ["add", "supersede", "update", "delete", "rollback", "record"],
    "storage": ["put", "rollback", "delete"],
    "access": ["grant", "revoke"],
}
CALLS = [(database, f"{database}.{kind}") for database, kinds in KINDS.items() for kind in kinds]
INJECTED = [
    *((f"db-wal.{act}", action) for act in ("write", "sync") for action in ("ENOSPC", "EIO", "EMFILE", "memory")),
    *(("before_commit", action) for action in ("ENOSPC", "EIO", "EMFILE", "memory")),
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Generator[Agent]:
    victim = Victim(config_of(tmp_path_factory.mktemp("faults")))
    victim.start()
    made = Agent(victim)
    yield made
    made.connection.close()
    assert victim.alive
    victim.kill()


@contextlib.contextmanager
def fault(victim: Victim, **faults: Fault) -> Iterator[None]:
    victim.fault({name.replace("__", "."): each for name, each in faults.items()})
    try:
        yield
    finally:
        victim.fault({})


@pytest.mark.parametrize(("where", "action"), INJECTED)
def test_a_disk_that_fails_is_a_typed_error_of_every_writing_call(agent: Agent, where: str, action: str) -> None:
    for database, kind in CALLS:
        call, changes = agent.prepared(kind)
        agent.victim.fault({f"{database}.{where}": Fault(action)})  # type: ignore[arg-type]
        error = agent.refused(call, changes)
        agent.victim.fault({})
        assert isinstance(error, InternalError), kind
        assert error.fix, kind
        assert error.syscall == kind.replace("supersede", "add"), kind
        agent.do(call, changes)
    agent.all_is_well()


@pytest.mark.slow
@pytest.mark.parametrize(("database", "kind"), CALLS)
def test_a_disk_that_hangs_costs_the_deadline_and_no_more(agent: Agent, database: str, kind: str) -> None:
    call, changes = agent.prepared(kind)
    agent.victim.fault({f"{database}.db-wal.sync": Fault("sleep", seconds=1.0)})
    error = agent.refused(call, changes, deadline_s=0.2)
    agent.victim.fault({})
    assert isinstance(error, DeadlineExceeded)
    time.sleep(1.2)
    agent.all_is_well()


@pytest.mark.parametrize("point", ["audit.db-wal.write", "audit.db-wal.sync", "audit.before_commit", "audit.sealing"])
@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "memory"])
def test_the_audit_log_catches_up_when_its_disk_is_back(agent: Agent, point: str, action: str) -> None:
    before = verified(agent)
    agent.victim.fault({point: Fault(action)})  # type: ignore[arg-type]
    for _, kind in CALLS:
        agent.do(*agent.prepared(kind))
    if point != "audit.db-wal.sync":  # which happens at checkpoints only
        with pytest.raises(InternalError):
            agent.client.call(AccessVerify(), timeout_s=DEADLINE_S)
    agent.victim.fault({})
    assert verified(agent) >= before + len(CALLS)
    agent.all_is_well()


def verified(agent: Agent) -> int:
    verdict = agent.client.call(AccessVerify())
    assert isinstance(verdict, AuditVerdict)
    assert verdict.ok, verdict.why
    return verdict.records


def test_a_trace_that_cannot_be_written_costs_no_call(agent: Agent) -> None:
    with fault(agent.victim, trace__write=Fault("ENOSPC")):
        for _, kind in CALLS:
            agent.do(*agent.prepared(kind))
        time.sleep(0.6)
    agent.all_is_well()


def test_an_index_that_fails_is_found_around(agent: Agent) -> None:
    with fault(agent.victim, memory__before_index=Fault("EIO"), memory__indexed=Fault("memory")):
        agent.do(MemoryAdd("albatross", id="bird"), {("note", "bird"): ("albatross", None)})
        time.sleep(1.5)
        found = agent.client.call(MemorySearch("albatross", k=1), program=agent.program, timeout_s=DEADLINE_S)
        assert isinstance(found, Notes)
        assert [note.id for note in found.notes] == ["bird"]
    agent.all_is_well()


# --- real ones ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("database", sorted(KINDS))
def test_a_database_that_another_program_holds_is_busy(agent: Agent, database: str) -> None:
    kinds = [kind for of, kind in CALLS if of == database]
    others = [kind for of, kind in CALLS if of != database]
    for kind in kinds:
        call, changes = agent.prepared(kind)
        with locked(agent.victim.home / f"{database}.db"):
            error = agent.refused(call, changes)
            for other in others[:2] if kind == kinds[0] else []:
                agent.do(*agent.prepared(other))
        assert isinstance(error, Busy), kind
        assert error.retry_after_s is not None
        agent.do(call, changes)
    agent.all_is_well()


LOCK = """
import sys, apsw
db = apsw.Connection(sys.argv[1])
db.set_busy_timeout(5000)
db.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program in the middle of a transaction."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            other.stdin.close()


def test_files_that_may_not_grow_are_a_typed_error(agent: Agent) -> None:
    """The system itself refuses (EFBIG), in the middle of whatever is being written."""
    assert agent.victim.process is not None
    pid = agent.victim.process.pid
    for _, kind in CALLS:
        call, changes = agent.prepared(kind)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, hard))
        error = agent.refused(call, changes)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(error, InternalError), kind
        agent.do(call, changes)
    agent.all_is_well()


def test_without_descriptors_open_connections_are_served_and_new_ones_wait(agent: Agent) -> None:
    assert agent.victim.process is not None
    pid = agent.victim.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) - 1, hard))
    try:
        for _, kind in CALLS:
            with contextlib.suppress(InternalError):  # or it is served: its database is open
                agent.do(*agent.prepared(kind))
        waiting = subprocess.Popen([sys.executable, "-c", ASK, str(agent.victim.home)], stdout=subprocess.PIPE)
        time.sleep(1.0)
        assert isinstance(agent.client.call(KernelInfo()), KernelStatus)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert waiting.communicate(timeout=30)[0] == b"fake\n"
    agent.all_is_well()


ASK = """
import sys
from pathlib import Path
from aios_evals.reliability.victim import config_of
from aios_kernel.client import Client, connect
from aios_kernel.syscalls import KernelInfo
connection = connect(config_of(Path(sys.argv[1])), start=False)
print(Client(connection).call(KernelInfo()).engine)
connection.close()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}; fix: run as root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_becomes_full_in_the_middle_of_commits(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * 1_000_000)
    victim = Victim(config_of(small_disk / "home"))
    victim.start()
    try:
        agent = Agent(victim)
        with pytest.raises(InternalError) as caught:
            agent.write_for_ever()
        assert "no space" in caught.value.message or "cannot be" in caught.value.message
        assert caught.value.fix
        for _ in range(3):  # full, and full again
            with contextlib.suppress(InternalError):
                agent.do(*agent.prepared("memory.add"))
        answer = agent.client.call(LlmChat(messages=[Message("user", "say hi")]), program=agent.program)
        assert isinstance(answer, LlmResult)
        ballast.unlink()
        for _, kind in CALLS:
            agent.do(*agent.prepared(kind))
        agent.all_is_well()
        agent.connection.close()
    finally:
        victim.kill()


# --- the clock ------------------------------------------------------------------------------------------------------

CLOCK = """
import os, time
_true = time.time
def _shifted():
    with open(os.environ["TEST_CLOCK"]) as file:
        return _true() + float(file.read() or 0)
time.time = _shifted
"""
DAY_S = 86_400.0


@pytest.mark.parametrize("jumps_s", [(365 * DAY_S, -3650 * DAY_S, 0.0), (-1.0, -2.0, -3600.0, 7200.0)])
def test_a_clock_that_jumps_loses_nothing_and_ends_nothing(tmp_path: Path, jumps_s: tuple[float, ...]) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {"PYTHONPATH": path, "TEST_CLOCK": str(clock)}
    victim = Victim(config_of(tmp_path / "home"), environment=environment)
    victim.start()
    try:
        agent = Agent(victim)
        pausing = agent.client.call(ToolBegin("look", timeout_s=60.0), program=agent.program)
        assert isinstance(pausing, ToolGrant)
        waiting: list[object] = []
        agent.client.start(AgentReceive(topic="news"), waiting.append, program=agent.program)
        for jump_s in jumps_s:
            fresh = clock.with_suffix(".part")
            fresh.write_text(str(jump_s))
            fresh.replace(clock)
            for _, kind in CALLS:
                if kind != "memory.rollback":  # which means the times that were written down, as that clock told them
                    agent.do(*agent.prepared(kind))
            time.sleep(0.6)  # the kernel's twice-a-second look at what is over
            agent.all_is_well()
        assert waiting == []
        agent.client.call(ToolEnd(pausing.grant), program=agent.program)
        audit = agent.client.call(AccessAudit(limit=10_000))
        assert isinstance(audit, AuditRecords)
        assert all(record.queued_s >= 0 and 0 <= record.ran_s < 600 for record in audit.records)
        agent.connection.close()
    finally:
        victim.kill()
    again = Victim(config_of(tmp_path / "home"), environment=environment)
    again.start()
    again.kill()


# --- at the start ---------------------------------------------------------------------------------------------------

AT_THE_START = [
    "start.locked", "start.token", "start.opened", "audit.key", "audit.migrated", "access.migrated", "memory.migrated",
    "storage.migrated", "memory.before_commit", "memory.db-wal.write", "memory.db.write", "audit.db-wal.sync",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "EMFILE", "memory"])
def test_a_start_that_fails_says_why_ends_and_can_be_tried_again(tmp_path: Path, action: str) -> None:
    for number, point in enumerate(AT_THE_START):
        home = tmp_path / str(number)
        with pytest.raises(AiosError) as caught:
            Victim(config_of(home), {point: Fault(action)}).start()  # type: ignore[arg-type]
        assert caught.value.message, point
    again = Victim(config_of(tmp_path / "1"))
    again.start()
    again.kill()


@pytest.mark.slow
def test_a_start_on_a_database_that_another_program_holds_is_busy(tmp_path: Path) -> None:
    first = Victim(config_of(tmp_path))
    first.start()
    first.kill()
    for database in ("access", "audit", "memory", "storage"):
        with locked(tmp_path / f"{database}.db"), pytest.raises(Busy, match=database):
            Victim(config_of(tmp_path)).start()
    again = Victim(config_of(tmp_path))
    again.start()
    again.kill()
