"""The client across forks, interrupts, and kernels that come and go."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_kernel import errors
from aios_kernel.client import Client, Connection, _connection, _launch, connect
from aios_kernel.config import Config, socket_of, token_file_of
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.server.runtime import lock_home, write_token
from aios_kernel.syscalls import KernelInfo, KernelStatus, LlmChat, LlmDelta, LlmResult, Message


@pytest.fixture
def kernel(tmp_path: Path) -> Generator[InProcessKernel, None, None]:
    config = Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    running = InProcessKernel(config)
    yield running
    running.stop()


@pytest.fixture
def connection(kernel: InProcessKernel) -> Generator[Connection, None, None]:
    opened = kernel.connect("tester")
    yield opened
    opened.close()


def chat(text: str, *, stream: bool = False) -> LlmChat:
    return LlmChat(messages=[Message("user", text)], stream=stream)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_connection_alone(connection: Connection) -> None:
    client = Client(connection)
    stream = client.stream(chat("think 2000", stream=True))
    next(stream)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stream.close()  # as the garbage collector would
            assert not connection.alive
            try:
                client.call(KernelInfo())
            except errors.KernelUnavailable:
                status = 0
            connection.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    rest = list(stream)
    assert isinstance(rest[-1], LlmResult)
    assert rest[-1].text.endswith("w1999")
    assert isinstance(client.call(KernelInfo()), KernelStatus)


def test_an_interrupt_while_sending_ends_the_connection_and_not_its_meaning(connection: Connection) -> None:
    """Half a frame may be out: what follows would be read as its other half."""

    class Interrupted:
        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def send(self, data: memoryview) -> int:
            self.real.send(data[:5])
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    client = Client(connection)
    stream = client.stream(chat("ponder", stream=True))
    assert isinstance(next(stream), LlmDelta)
    connection._socket = Interrupted(connection._socket)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        client.call(KernelInfo())
    assert not connection.alive
    with pytest.raises(errors.KernelUnavailable):
        list(stream)


def test_a_kernel_that_never_greets_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "_GREETING_S", 0.1)
    path = tmp_path / "mute.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(errors.KernelUnavailable):
            Connection.open(path, "token")


def test_a_sink_that_fails_ends_the_other_calls_instead_of_leaving_them_waiting(connection: Connection) -> None:
    class Broken:
        def put(self, frame: object) -> None:
            raise RuntimeError("a fault of a sink")

    caught: list[errors.AiosError] = []

    def ask() -> None:
        try:
            Client(connection).call(chat("ponder"))
        except errors.AiosError as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    connection.submit(KernelInfo(), Broken(), program=None, timeout_s=None)
    thread.join(10)
    assert isinstance(caught[0], errors.KernelUnavailable)


def test_a_token_that_changed_while_we_connected_is_read_again(
    kernel: InProcessKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = msgspec.structs.replace(kernel.config, kernel="auto")
    path = token_file_of(config)
    right = path.read_text()
    path.write_text("of the kernel before")
    real = Connection.open.__func__  # type: ignore[attr-defined]

    def opened(cls: type[Connection], *args: Any) -> Connection:
        path.write_text(right)
        return real(cls, *args)

    monkeypatch.setattr(Connection, "open", classmethod(opened))
    connect(config, start=False).close()


def test_a_kernel_that_is_leaving_is_waited_for_and_replaced(tmp_path: Path) -> None:
    """It holds the lock, its socket is gone: the client's own kernel cannot start until it has left."""
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact", grace_s=0.2, start_timeout_s=60)
    leaving = lock_home(config)
    write_token(config)
    timer = threading.Timer(2.0, leaving.close)
    timer.start()
    began = time.monotonic()
    connection = connect(config)
    assert time.monotonic() - began < 30
    assert isinstance(Client(connection).call(chat("say hi")), LlmResult)
    connection.close()
    timer.join()
    ends_at = time.monotonic() + 10
    while socket_of(config).exists() and time.monotonic() < ends_at:
        time.sleep(0.05)


def test_a_kernel_process_that_hangs_before_it_is_up_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"""#!/bin/sh
if [ -e {pid} ]; then exec {sys.executable} "$@"; fi
echo $$ > {pid}
exec sleep 600
""")
    python.chmod(0o755)
    monkeypatch.setattr(_launch, "_UP_S", 2.0)
    config = Config(
        home=str(tmp_path / "aios"), python=str(python), model="fake", embedder="hash", vectors="exact", grace_s=0.2
    )
    connection = connect(config)
    assert isinstance(Client(connection).call(chat("say hi")), LlmResult)
    connection.close()
    with pytest.raises(ProcessLookupError):  # the reaper has waited for it long since
        os.kill(int(pid.read_text()), 0)


def test_a_data_directory_that_cannot_be_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.KernelUnavailable) as caught:
        connect(Config(home=str(tmp_path / "file" / "below"), model="fake"))
    assert caught.value.fix
