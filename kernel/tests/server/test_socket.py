"""The kernel behind its socket: real processes, real frames, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from aios_kernel import errors, frames
from aios_kernel.client import AsyncClient, Client, Connection, connect, kernel_command, kernel_input
from aios_kernel.config import Config, socket_of, token_file_of
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
    Hello,
    KernelInfo,
    KernelKill,
    KernelPs,
    LlmChat,
    LlmDelta,
    LlmResult,
    Mail,
    MemoryAdd,
    MemorySearch,
    Message,
    Notes,
    Ok,
    ProgramInfo,
    Programs,
    Request,
    Sampling,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)


def chat(text: str, *, stream: bool = False) -> LlmChat:
    return LlmChat(messages=[Message(role="user", content=text)], stream=stream)


class KernelProcess:
    """A kernel in a process of its own."""

    def __init__(self, config: Config) -> None:
        self.config = config
        ours, theirs = os.pipe()
        self.process = subprocess.Popen(
            [*kernel_command(config, forever=True), "--report-fd", str(theirs)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
        )
        os.close(theirs)
        assert self.process.stdin is not None
        with self.process.stdin:
            self.process.stdin.write(kernel_input(config))
        with os.fdopen(ours, "rb") as reports:
            self.report = reports.read()

    def connect(self, name: str = "test") -> Connection:
        return connect(self.config, client=name, start=False)

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Generator[KernelProcess, None, None]:
    home = tmp_path_factory.mktemp("aios")
    running = KernelProcess(Config(home=str(home), model="fake", embedder="hash", vectors="exact", tool_timeout_s=0.4))
    assert running.report == b"ready"
    yield running
    assert running.end() == 0


@pytest.fixture
def client(kernel: KernelProcess) -> Generator[Client, None, None]:
    connection = kernel.connect()
    yield Client(connection)
    connection.close()


def raw(kernel: KernelProcess) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(str(socket_of(kernel.config)))
    return sock


def read_frames(sock: socket.socket) -> list[msgspec.Struct]:
    """Everything until the kernel hangs up."""
    reader, found = frames.kernel_frames(), []
    while data := sock.recv(65536):
        found.extend(reader.feed(data))
    return found


def states(client: Client) -> dict[str, ProgramInfo]:
    answer = client.call(KernelPs())
    assert isinstance(answer, Programs)
    return {program.program: program for program in answer.programs}


def eventually(condition: object, seconds: float = 5.0) -> bool:
    ends_at = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < ends_at:  # type: ignore[operator]
        time.sleep(0.01)
    return bool(held)


def test_chat_blocking_and_streaming(client: Client) -> None:
    answer = client.call(chat("say hello there"))
    assert isinstance(answer, LlmResult)
    assert answer.text == "hello there"
    pieces = list(client.stream(chat("think 4", stream=True)))
    assert "".join(piece.text for piece in pieces if isinstance(piece, LlmDelta)) == "w0 w1 w2 w3"
    assert isinstance(pieces[-1], LlmResult)


async def test_many_calls_at_once_on_one_connection(kernel: KernelProcess) -> None:
    connection = kernel.connect()
    client = AsyncClient(connection)
    answers = await asyncio.gather(*(client.call(chat(f"say number {n}")) for n in range(200)))
    assert [answer.text for answer in answers if isinstance(answer, LlmResult)] == [f"number {n}" for n in range(200)]
    connection.close()


def test_the_socket_and_the_token_are_private(kernel: KernelProcess) -> None:
    for path in (socket_of(kernel.config), token_file_of(kernel.config)):
        assert path.stat().st_mode & 0o077 == 0
    assert socket_of(kernel.config).parent.stat().st_mode & 0o077 == 0


def test_a_wrong_token_is_refused(kernel: KernelProcess) -> None:
    config = msgspec.structs.replace(kernel.config, token="guessed")
    with pytest.raises(errors.AuthError, match="token"):
        connect(config, start=False)


def test_another_version_is_refused(kernel: KernelProcess) -> None:
    with raw(kernel) as sock:
        sock.sendall(frames.encode(Hello(version=ABI_VERSION + 1, token="x")))
        (frame,) = read_frames(sock)
    assert isinstance(frame, Failed)
    assert frame.code == errors.HandshakeRefused.code


@pytest.mark.parametrize(
    "rubbish",
    [b"\x00\x00\x00\x05hello", b"\xff\xff\xff\xff", struct.pack(">I", 4) + b"\x91" * 4, b"GET / HTTP/1.1\r\n\r\n"],
)
def test_a_broken_frame_ends_its_connection_only(kernel: KernelProcess, client: Client, rubbish: bytes) -> None:
    with raw(kernel) as sock:
        sock.sendall(rubbish)
        (frame,) = read_frames(sock)
    assert isinstance(frame, Failed)
    assert frame.code == errors.ProtocolError.code
    assert isinstance(client.call(chat("say still here")), LlmResult)


def test_a_request_before_the_greeting_is_refused(kernel: KernelProcess) -> None:
    with raw(kernel) as sock:
        sock.sendall(frames.encode(Request(id=1, call=KernelInfo())))
        (frame,) = read_frames(sock)
    assert isinstance(frame, Failed)


def test_a_second_kernel_on_the_same_directory_is_refused(kernel: KernelProcess) -> None:
    second = KernelProcess(kernel.config)
    assert second.process.wait(20) != 0
    report = msgspec.msgpack.decode(second.report, type=Failed)
    assert report.code == errors.KernelLocked.code
    assert str(kernel.process.pid) in report.message
    assert report.fix


def test_a_deadline_ends_a_call(client: Client) -> None:
    with pytest.raises(errors.DeadlineExceeded) as caught:
        client.call(AgentReceive(), timeout_s=0.05)
    assert caught.value.syscall == "agent.receive"
    with pytest.raises(errors.DeadlineExceeded):
        client.call(chat("ponder"), timeout_s=0.1)


def test_leaving_a_stream_stops_the_generation(client: Client) -> None:
    client.call(AgentSpawn(program="leaver", agent="leaver"))
    stream = client.stream(chat("ponder", stream=True), program="leaver")
    next(stream)
    assert states(client)["leaver"].state == "running"
    stream.close()
    assert eventually(lambda: states(client)["leaver"].state == "idle")
    assert states(client)["leaver"].completion_tokens < 100_000


async def test_cancelling_a_task_cancels_the_call(kernel: KernelProcess) -> None:
    connection = kernel.connect()
    client = AsyncClient(connection)
    task = asyncio.ensure_future(client.call(chat("ponder")))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    info = await client.call(KernelInfo())
    assert info.kv_free_tokens == info.kv_tokens or await _freed(client)
    connection.close()


async def _freed(client: AsyncClient) -> bool:
    for _ in range(100):
        info = await client.call(KernelInfo())
        if info.kv_free_tokens == info.kv_tokens:
            return True
        await asyncio.sleep(0.01)
    return False


def test_a_client_that_is_killed_frees_what_it_held(kernel: KernelProcess, client: Client) -> None:
    script = (
        "import sys; from aios_kernel.client import *; from aios_kernel.config import *; import msgspec\n"
        "from aios_kernel.syscalls import *\n"
        "c = Client(connect(msgspec.json.decode(sys.argv[1], type=Config), start=False))\n"
        "c.call(AgentSpawn(program='victim', agent='victim'))\n"
        "for d in c.stream(LlmChat(messages=[Message(role='user', content='ponder')], stream=True),"
        " program='victim'):\n    print('x', flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, msgspec.json.encode(kernel.config).decode()], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert states(client)["victim"].state == "running"
    child.kill()
    child.stdout.close()
    child.wait()
    assert eventually(lambda: states(client)["victim"].state == "finished")
    assert states(client)["victim"].error == "its client has gone"
    assert eventually(lambda: client.call(KernelInfo()).kv_free_tokens == client.call(KernelInfo()).kv_tokens)  # type: ignore[union-attr]


def test_programs_states_and_accounts(client: Client) -> None:
    client.call(AgentSpawn(program="p1", agent="worker", framework="x", priority="batch", group="g"))
    client.call(AgentSpawn(program="p2", agent="worker/inner", parent="p1"))
    assert states(client)["p2"].group == "g"
    grant = client.call(ToolBegin(name="search"), program="p1")
    assert isinstance(grant, ToolGrant)
    assert (states(client)["p1"].state, states(client)["p1"].waiting_for) == ("tool", "search")
    client.call(ToolEnd(grant=grant.grant), program="p1")
    client.call(chat("say hi"), program="p1")
    row = states(client)["p1"]
    assert (row.state, row.llm_calls, row.tool_calls, row.completion_tokens) == ("idle", 1, 1, 2)
    client.call(AgentExit(), program="p1")
    assert {states(client)[p].state for p in ("p1", "p2")} == {"finished"}
    with pytest.raises(errors.NotFound):
        client.call(chat("say hi"), program="p1")


def test_a_tool_that_hangs_does_not_pause_its_program_for_ever(client: Client) -> None:
    client.call(AgentSpawn(program="hanger", agent="hanger"))
    grant = client.call(ToolBegin(name="sleep"), program="hanger")
    assert isinstance(grant, ToolGrant)
    assert grant.timeout_s == pytest.approx(0.4)
    assert states(client)["hanger"].state == "tool"
    assert eventually(lambda: states(client)["hanger"].state == "idle", 20)


def test_messages_between_agents(kernel: KernelProcess, client: Client) -> None:
    client.call(AgentSpawn(program="rx", agent="receiver"))
    client.call(AgentSpawn(program="tx", agent="sender"))
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(client.call(AgentReceive(topic="b"), program="rx")))
    waiter.start()
    assert eventually(lambda: states(client)["rx"].state == "message")
    client.call(AgentSend(to="receiver", body="one", topic="a"), program="tx")
    client.call(AgentSend(to="receiver", body="two", topic="b"), program="tx")
    waiter.join(5)
    assert isinstance(got[0], Mail)
    assert (got[0].body, got[0].sender) == ("two", "sender")
    first = client.call(AgentReceive(), program="rx")
    assert isinstance(first, Mail)
    assert first.body == "one"


def test_waiting_for_the_end_of_a_program(client: Client) -> None:
    client.call(AgentSpawn(program="w1", agent="w1"))
    timer = threading.Timer(0.05, lambda: client.call(AgentExit(error="why not"), program="w1"))
    timer.start()
    info = client.call(AgentWait(program="w1"))
    timer.join()
    assert isinstance(info, ProgramInfo)
    assert (info.state, info.error) == ("finished", "why not")


def test_kill_cancels_open_calls(client: Client) -> None:
    client.call(AgentSpawn(program="k1", agent="killme"))
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            client.call(chat("ponder"), program="k1")
        except errors.AiosError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert eventually(lambda: states(client)["k1"].state == "running")
    client.call(KernelKill(target="killme"))
    thread.join(5)
    assert isinstance(caught[0], errors.Cancelled)


def test_every_syscall_leaves_one_audit_record(client: Client) -> None:
    client.call(AgentSpawn(program="au", agent="audited"))
    client.call(chat("say x"), program="au")
    with pytest.raises(errors.InvalidRequest):
        client.call(LlmChat(messages=[]), program="au")
    client.call(AgentExit(), program="au")
    log = client.call(AccessAudit(agent="audited"))
    assert isinstance(log, AuditRecords)
    assert [(record.syscall, record.outcome) for record in reversed(log.records)] == [
        ("agent.spawn", "ok"),
        ("llm.chat", "ok"),
        ("llm.chat", "invalid_request"),
        ("agent.exit", "ok"),
    ]


def test_memory_is_private_unless_it_is_the_groups(client: Client) -> None:
    for name in ("ann", "ben"):
        client.call(AgentSpawn(program=name, agent=name, group="team"))
    client.call(MemoryAdd(text="the code is 42"), program="ann")
    client.call(MemoryAdd(text="the door is green", namespace="group/team"), program="ann")
    with pytest.raises(errors.AccessDenied) as caught:
        client.call(MemorySearch(query="code", namespace="agent/ann"), program="ben")
    assert caught.value.agent == "ben"
    assert caught.value.fix
    notes = client.call(MemorySearch(query="door", namespace="group/team"), program="ben")
    assert isinstance(notes, Notes)
    assert [(note.text, note.author) for note in notes.notes] == [("the door is green", "ann")]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (LlmChat(messages=[]), errors.InvalidRequest),
        (LlmChat(messages=[Message("user", "x " * 70_000)]), errors.ContextTooLong),
        (LlmChat(messages=[Message("user", "x")], schema={"type": 5}), errors.InvalidSchema),
        (LlmChat(messages=[Message("user", "x")], sampling=Sampling(temperature=-1)), errors.InvalidRequest),
        (LlmChat(messages=[Message("user", "x")], sampling=Sampling(max_tokens=0)), errors.InvalidRequest),
        (ToolEnd(grant="no such grant"), errors.AiosError),
        (AgentWait(program="nobody"), errors.NotFound),
        (AgentSpawn(program="x" * 500, agent="a"), errors.InvalidRequest),
        (MemoryAdd(text="x", namespace="agent/../agent/ann"), errors.InvalidRequest),
    ],
)
def test_bad_arguments_get_a_typed_error(client: Client, call: object, error: type[errors.AiosError]) -> None:
    with pytest.raises(error) as caught:
        client.call(call)  # type: ignore[arg-type]
    assert caught.value.message
    assert isinstance(client.call(chat("say alive")), LlmResult)


def test_somebody_elses_program_cannot_be_used(tmp_path: Path) -> None:
    import hashlib

    guest = hashlib.sha256(b"guest-token").hexdigest()
    config = Config(
        home=str(tmp_path), model="fake", embedder="hash", vectors="exact", principals={"guest": guest}, token="mine"
    )
    running = KernelProcess(config)
    mine = Client(connect(config, start=False))
    guests = Client(connect(msgspec.structs.replace(config, token="guest-token"), start=False))
    mine.call(AgentSpawn(program="secret", agent="secret"))
    with pytest.raises(errors.NotFound):
        guests.call(chat("say x"), program="secret")
    with pytest.raises(errors.NotFound):
        guests.call(KernelKill(target="secret"))
    assert "secret" not in states(guests)
    mine.connection.close()
    guests.connection.close()
    assert running.end() == 0


def test_a_kernel_that_dies_ends_the_open_calls(tmp_path: Path) -> None:
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    running = KernelProcess(config)
    client = Client(running.connect())
    threading.Timer(0.1, lambda: running.process.send_signal(signal.SIGKILL)).start()
    with pytest.raises(errors.KernelUnavailable) as caught:
        client.call(chat("ponder"))
    assert caught.value.fix
    running.process.wait()
    again = KernelProcess(config)  # the lock and the socket of a killed kernel are no obstacle
    assert again.report == b"ready"
    assert again.end() == 0


def test_auto_start_and_leaving(tmp_path: Path) -> None:
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact", grace_s=0.2)
    first = connect(config)
    second = connect(config)
    assert first.welcome.pid == second.welcome.pid
    first.close()
    second.close()
    assert eventually(lambda: not socket_of(config).exists(), 10)


def test_an_unknown_model_or_policy_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="policy"):
        connect(Config(home=str(tmp_path), model="fake", policy="lottery"))
    with pytest.raises(errors.UnknownModel):
        connect(Config(home=str(tmp_path), model="/no/such/model", embedder="hash", vectors="exact"))


def test_exactly_one_end_frame_a_request(kernel: KernelProcess) -> None:
    with raw(kernel) as sock:
        token = token_file_of(kernel.config).read_text()
        sock.sendall(frames.encode(Hello(version=ABI_VERSION, token=token)))
        sock.sendall(b"".join(frames.encode(Request(id=n, call=chat(f"think {n}"))) for n in range(1, 50)))
        sock.sendall(frames.encode(Request(id=7, call=KernelInfo())))  # an id in use
        time.sleep(0.5)
        sock.shutdown(socket.SHUT_WR)
        ends = [frame.id for frame in read_frames(sock) if isinstance(frame, Done | Failed)]
    assert set(ends) == set(range(1, 50))
    assert len(ends) <= 50


def test_ok_is_ok(client: Client) -> None:
    client.call(AgentSpawn(program="okay", agent="okay"))
    assert client.call(AgentSend(to="okay", body="{}")) == Ok()
