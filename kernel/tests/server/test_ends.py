"""Ends and odd ways in: shutdown with clients at work, files in the way, requests that make no sense, slow readers."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_kernel import errors, frames
from aios_kernel.client import Client, Connection, connect
from aios_kernel.config import Config, socket_of, token_file_of
from aios_kernel.server import unix
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.server.runtime import lock_home, write_token
from aios_kernel.server.socket_file import bind, private_folder
from aios_kernel.server.unix import Doorman
from aios_kernel.syscalls import (
    ABI_VERSION,
    AccessAudit,
    AgentExit,
    AgentReceive,
    AgentSend,
    AgentSpawn,
    AgentWait,
    AuditRecords,
    Done,
    Failed,
    FileData,
    Hello,
    KernelInfo,
    KernelPs,
    LlmChat,
    LlmResult,
    Message,
    ProgramInfo,
    Programs,
    StorageGet,
    StoragePut,
    Welcome,
)


def config_of(home: Path, **settings: Any) -> Config:
    return Config(kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact", **settings)


@pytest.fixture
def kernel(tmp_path: Path) -> Generator[InProcessKernel, None, None]:
    running = InProcessKernel(config_of(tmp_path))
    yield running
    running.stop()


@pytest.fixture
def client(kernel: InProcessKernel) -> Generator[Client, None, None]:
    connection = kernel.connect("tester")
    yield Client(connection)
    connection.close()


def chat(text: str) -> LlmChat:
    return LlmChat(messages=[Message("user", text)])


def test_stopping_with_clients_at_work_ends_every_call_and_closes_every_socket(tmp_path: Path) -> None:
    running = InProcessKernel(config_of(tmp_path))
    connections = [running.connect(), connect(msgspec.structs.replace(running.config, kernel="auto"), start=False)]
    caught: list[errors.AiosError] = []

    def ask(connection: Connection, call: Any) -> None:
        try:
            Client(connection).call(call)
        except errors.AiosError as error:
            caught.append(error)

    threads = [
        threading.Thread(target=ask, args=(connection, call))
        for connection in connections
        for call in (chat("ponder"), AgentReceive(), chat("ponder"))
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    gc.collect()  # what earlier tests of frameworks left
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        running.stop()
        gc.collect()
    for thread in threads:
        thread.join(5)
    assert [type(error) for error in caught] == [errors.Cancelled] * len(threads)
    assert all("shutting down" in error.message for error in caught)
    for connection in connections:
        with pytest.raises(errors.KernelUnavailable):
            Client(connection).call(KernelInfo())


def test_a_kernel_in_a_process_that_just_ends_writes_everything_down(tmp_path: Path) -> None:
    script = (
        "import sys, msgspec\n"
        "from aios_kernel.client import Client, connect\nfrom aios_kernel.config import Config\n"
        "from aios_kernel.syscalls import *\n"
        "client = Client(connect(msgspec.json.decode(sys.argv[1], type=Config)))\n"
        "client.call(LlmChat(messages=[Message('user', 'say hi')]))\n"
    )
    config = config_of(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", script, msgspec.json.encode(config).decode()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    again = InProcessKernel(config)
    log = Client(again.connect()).call(AccessAudit())
    again.stop()
    assert isinstance(log, AuditRecords)
    assert [record.syscall for record in log.records] == ["llm.chat"]


# --- files in the way -------------------------------------------------------------------------------------------------


def test_only_a_dead_socket_is_removed(tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    letter.write_text("dear")
    with pytest.raises(errors.ConfigError):
        bind(letter)
    assert letter.read_text() == "dear"
    path = tmp_path / "kernel.sock"
    first = bind(path)
    first.listen()
    with pytest.raises(errors.KernelLocked):
        bind(path)
    first.close()
    second = bind(path)  # left behind by a kernel that was killed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second.close()


def test_a_socket_is_made_without_touching_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def umask(mask: int) -> int:
        raise AssertionError("the umask belongs to the whole process")

    monkeypatch.setattr(os, "umask", umask)
    bind(tmp_path / "kernel.sock").close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    with pytest.raises(errors.ConfigError) as caught:
        private_folder(open_folder)
    assert caught.value.fix
    with pytest.raises(errors.ConfigError, match="socket"):
        bind(tmp_path / ("x" * 120) / "kernel.sock")


def test_a_token_never_follows_a_link_or_keeps_loose_rights(tmp_path: Path) -> None:
    config = Config(home=str(tmp_path))
    path, target = token_file_of(config), tmp_path / "target"
    path.parent.mkdir(mode=0o700)
    target.write_text("precious")
    path.symlink_to(target)
    token = write_token(config)
    assert target.read_text() == "precious"
    assert not path.is_symlink()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (token, 0o600)


def test_a_client_that_looks_whether_the_lock_is_free_does_not_stop_a_start(tmp_path: Path) -> None:
    import fcntl

    config = Config(home=str(tmp_path))
    lock_home(config).close()
    probe = (tmp_path / "run" / "kernel.lock").open()
    fcntl.flock(probe, fcntl.LOCK_SH)
    threading.Timer(0.01, probe.close).start()
    lock_home(config).close()


def test_a_principal_needs_a_digest() -> None:
    with pytest.raises(errors.ConfigError, match="guest"):
        Doorman("mine", "me", {"guest": "their plain token"})


# --- requests ---------------------------------------------------------------------------------------------------------


def greeted(kernel: InProcessKernel) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    config = msgspec.structs.replace(kernel.config, kernel="auto")
    sock.connect(str(socket_of(config)))
    sock.sendall(frames.encode(Hello(version=ABI_VERSION, token=token_file_of(config).read_text(), client="raw")))
    assert isinstance(read(sock, frames.kernel_frames(), 1)[0], Welcome)
    return sock


def read(sock: socket.socket, reader: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        data = sock.recv(1 << 20)
        assert data, "the kernel hung up"
        found.extend(reader.feed(data))
    return found


def packed(value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "call",
    [
        {"type": "llm.chat", "messages": [{"role": "developer", "content": "x"}]},
        {"type": "llm.chat", "messages": [], "sampling": {"max_tokens": 1.5}},
        {"type": "agent.spawn", "program": "p", "agent": "a", "priority": "urgent"},
        {"type": "llm.dream"},
        {},
    ],
)
def test_a_request_with_wrong_arguments_fails_alone(kernel: InProcessKernel, client: Client, call: Any) -> None:
    with greeted(kernel) as sock:
        sock.sendall(packed({"type": "request", "id": 7, "call": call}))
        sock.sendall(packed({"type": "request", "id": 8, "call": {"type": "kernel.info"}}))
        answers = {frame.id: frame for frame in read(sock, frames.kernel_frames(), 2)}
    assert isinstance(answers[7], Failed)
    assert answers[7].code == errors.InvalidRequest.code
    assert isinstance(answers[8], Done)
    log = client.call(AccessAudit())
    assert isinstance(log, AuditRecords)
    assert [record.outcome for record in log.records if record.agent == "raw"].count("invalid_request") == 1


def test_text_that_cannot_be_written_is_the_callers_error(client: Client) -> None:
    with pytest.raises(errors.ProtocolError) as caught:
        client.call(chat("half a pair: \ud800"))
    assert caught.value.fix
    assert isinstance(client.call(chat("say on")), LlmResult)


def test_refused_syscalls_are_audited_too(client: Client) -> None:
    client.call(AgentSpawn(program="mine", agent="mine"))
    with pytest.raises(errors.NotFound):
        client.call(chat("x"), program="somebody's")
    with pytest.raises(errors.InvalidRequest):
        client.call(AgentSpawn(program="mine", agent="another"))
    log = client.call(AccessAudit())
    assert isinstance(log, AuditRecords)
    assert [(record.syscall, record.program, record.outcome) for record in log.records] == [
        ("agent.spawn", "", "invalid_request"),
        ("llm.chat", "somebody's", "not_found"),
        ("agent.spawn", "mine", "ok"),
    ]


def test_times_that_are_none_are_refused(client: Client) -> None:
    client.call(AgentSpawn(program="p", agent="p"))
    for timeout_s in (float("nan"), -1.0):
        with pytest.raises(errors.InvalidRequest):
            client.call(AgentReceive(timeout_s=timeout_s), program="p")
        with pytest.raises(errors.InvalidRequest):
            client.call(AgentWait(program="p", timeout_s=timeout_s))
    with pytest.raises(errors.DeadlineExceeded):
        client.call(AgentReceive(timeout_s=0.01), program="p")


def test_a_message_to_a_program_that_has_ended_is_refused(client: Client) -> None:
    client.call(AgentSpawn(program="gone", agent="gone"))
    client.call(AgentExit(), program="gone")
    with pytest.raises(errors.NotFound):
        client.call(AgentSend(to="gone", body="x"))


def test_an_error_of_a_whole_batch_names_each_ones_own_agent(kernel: InProcessKernel, client: Client) -> None:
    assert kernel.kernel is not None

    def step(plan: Any) -> Any:
        raise RuntimeError("no more")

    for name in ("ann", "ben"):
        client.call(AgentSpawn(program=name, agent=name))
    asked = [_Sink(), _Sink()]
    kernel.kernel.model.engine.step = step
    for name, sink in zip(("ann", "ben"), asked, strict=True):
        client.connection.submit(chat("think 5"), sink, program=name, timeout_s=None)
    for name, sink in zip(("ann", "ben"), asked, strict=True):
        assert sink.ended.wait(5)
        assert sink.frame.agent == name


class _Sink:
    def __init__(self) -> None:
        self.ended = threading.Event()
        self.frame: Any = None

    def put(self, frame: Any) -> None:
        self.frame = frame
        self.ended.set()


def test_a_call_that_is_swapped_out_is_queued_again(tmp_path: Path) -> None:
    options = {"quantum": 5, "slots": 1, "always_swap": True}
    running = InProcessKernel(config_of(tmp_path, policy="round_robin", policy_options=options))
    client = Client(running.connect())
    numbers: list[int] = []
    for name in ("a", "b"):
        client.call(AgentSpawn(program=name, agent=name))
        numbers.append(client.connection.submit(chat("ponder"), _Sink(), program=name, timeout_s=None))
    seen: set[tuple[str, ...]] = set()
    ends_at = time.monotonic() + 20
    while time.monotonic() < ends_at and not all(row.snapshots > 10 for row in _pair(client)):
        seen.add(tuple(sorted(row.state for row in _pair(client))))
    for number in numbers:
        client.connection.cancel(number)
    rows = _pair(client)
    client.connection.close()
    running.stop()
    assert ("ready", "running") in seen
    assert ("running", "running") not in seen
    assert all(row.queued_s > 0 and row.running_s > 0 for row in rows)


def _pair(client: Client) -> list[ProgramInfo]:
    answer = client.call(KernelPs())
    assert isinstance(answer, Programs)
    return [row for row in answer.programs if row.program in {"a", "b"}]


# --- slow readers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_large_answers_at_once_do_not_cost_the_connection(client: Client) -> None:
    client.call(AgentSpawn(program="big", agent="big"))
    client.call(StoragePut(path="f", data=b"x" * (40 << 20)), program="big", timeout_s=60)
    sinks = [_Sink() for _ in range(3)]
    for sink in sinks:
        client.connection.submit(StorageGet(path="f"), sink, program="big", timeout_s=None)
    for sink in sinks:
        assert sink.ended.wait(60)
        assert isinstance(sink.frame.result, FileData)


def test_a_client_that_never_reads_is_cut_off(kernel: InProcessKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "_STALL_S", 0.1)
    monkeypatch.setattr(unix, "_WRITE_LIMIT", 1000)
    with greeted(kernel) as sock:
        call = {"type": "llm.chat", "messages": [{"role": "user", "content": "think 400"}]}
        asked = packed({"type": "request", "id": 1, "call": call})
        sock.settimeout(0.5)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            flood(sock, asked, 20.0)


def flood(sock: socket.socket, data: bytes, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        with contextlib.suppress(TimeoutError):
            sock.sendall(data)
