"""A server that the kernel runs as its child: started, watched, started again, given up, and ended with the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.engine.openai.tokens import Piece
from aios_kernel.engine.settings import VllmSettings
from aios_kernel.engine.vllm import command as commands
from aios_kernel.engine.vllm import vllm_model
from aios_kernel.engine.vllm.child import ChildServer
from aios_kernel.engine.vllm.load import free_port
from aios_kernel.engine.vllm.server import ChildModelServer
from aios_kernel.errors import ConfigError, EngineUnavailable

SERVER = """
import http.server, json, os, sys, threading, time
def leave():
    while os.read(0, 100): pass
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200); self.send_header("content-type", "text/event-stream"); self.end_headers()
        chunk = {"choices": [{"delta": {"content": str(os.getpid())}}]}
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n"); self.wfile.flush()
        if body["model"] == "slow": time.sleep(60)
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        self.wfile.write(b"data: " + json.dumps(end).encode() + b"\\n\\ndata: [DONE]\\n\\n")
    def log_message(self, *args): pass
print("hello from the server", flush=True)
if len(sys.argv) > 2 and os.path.exists(sys.argv[2]): sys.exit(3)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture
def make(tmp_path: Path) -> Generator[Callable[..., tuple[ChildServer, int]]]:
    (tmp_path / "server.py").write_text(SERVER)
    made: list[ChildServer] = []

    def child(timeout_s: float = 20.0) -> tuple[ChildServer, int]:
        port = free_port()
        command = [sys.executable, str(tmp_path / "server.py"), str(port), str(tmp_path / "refuse")]
        log = tmp_path / "run" / "log"
        made.append(
            ChildServer(command, os.environ, log=log, healthy=lambda: answers(port), timeout_s=timeout_s, name="server")
        )
        return made[-1], port

    yield child
    for each in made:
        each.close()


def ask(server: ChildModelServer, model: str = "quick") -> tuple[list[Any], threading.Event]:
    """Ask; gives what arrives, and when it is the end."""
    arrived: list[Any] = []
    ended = threading.Event()

    def arrive(piece: Any) -> None:
        arrived.append(piece)
        if not isinstance(piece, Piece) or piece.end:
            ended.set()

    server.ask({"model": model}, arrive)
    return arrived, ended


@pytest.fixture
def connected(make: Any) -> Generator[Callable[..., tuple[ChildServer, ChildModelServer]]]:
    with ExitStack() as opened:

        def connect(*, started: bool = True) -> tuple[ChildServer, ChildModelServer]:
            child, port = make()
            if started:
                child.start()
            server = ChildModelServer(f"http://127.0.0.1:{port}/v1", "key", child)
            return child, opened.enter_context(closing(server))

        yield connect


def test_its_death_is_told_and_it_is_started_again(connected: Any, caplog: pytest.LogCaptureFixture) -> None:
    child, server = connected()
    slow, ended = ask(server, "slow")
    until(lambda: slow)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    assert ended.wait(20)
    assert isinstance(slow[-1], EngineUnavailable)
    assert "killed by SIGKILL in the middle of this answer" in slow[-1].message
    assert slow[-1].fix == "send the call again"
    later, ended = ask(server)  # it waits until there is a server again
    assert ended.wait(20)
    assert [piece.text for piece in later] == [str(child.pid), ""]
    assert child.pid != first
    assert f"(pid {first}) was killed by SIGKILL" in caplog.text


def test_one_that_does_not_come_up_again_is_given_up(connected: Any, tmp_path: Path) -> None:
    child, server = connected()
    (tmp_path / "refuse").touch()
    os.kill(child.pid, signal.SIGTERM)
    until(lambda: not child.ready.is_set())
    arrived, ended = ask(server)
    assert ended.wait(30)
    assert isinstance(arrived[0], EngineUnavailable)
    assert "ended with status 3; it is not started again: " in arrived[0].message
    assert "hello from the server" in arrived[0].message
    assert child.lives == 4


def test_a_call_that_is_given_up_while_it_waits(connected: Any) -> None:
    _, server = connected(started=False)
    arrived: list[Any] = []
    cancel = server.ask({"model": "quick"}, arrived.append)
    time.sleep(0.2)
    cancel()
    time.sleep(0.2)
    assert arrived == []


def test_one_that_never_answers(make: Any, tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    child, _ = make()
    with pytest.raises(EngineUnavailable, match="ended with status 3 before it answered: hello") as caught:
        child.start()
    assert caught.value.fix == f"look into {tmp_path / 'run' / 'log'}"
    (tmp_path / "refuse").unlink()
    slow = ChildServer(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        os.environ, log=tmp_path / "log", healthy=lambda: False, timeout_s=0.5, name="server",
    )  # fmt: skip
    with pytest.raises(EngineUnavailable, match=r"did not answer within 0\.5 s"):
        slow.start()
    assert slow.ended()  # it was not left behind


def test_it_ends_with_the_kernel(tmp_path: Path) -> None:
    """The launcher ends what it runs when its standard input does, as it does when the kernel is killed."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text("import sys, time\nprint(*sys.argv[1:], flush=True)\ntime.sleep(60)\n")
    launch = Path(commands.__file__).parent / "launch.py"
    process = subprocess.Popen(
        [sys.executable, str(launch), "--model", "m"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "--model m\n"
    process.stdin.close()
    assert process.wait(20) == -signal.SIGTERM
    process.stdout.close()


def test_the_command(tmp_path: Path) -> None:
    settings = VllmSettings(python=sys.executable, tensor_parallel=4, args=["--max-model-len", "99"])
    made = commands.command(str(tmp_path), "mine", 8123, settings)
    assert made[0] == sys.executable
    assert " ".join(made).endswith("--max-model-len 99")
    for pair in ("--host 127.0.0.1", "--port 8123", "--tensor-parallel-size 4", "--scheduling-policy priority"):
        assert pair in " ".join(made)
    assert "secret" not in " ".join(made)
    assert commands.environment("secret")["VLLM_API_KEY"] == "secret"
    for template, parser in {
        "[TOOL_CALLS]": "mistral",
        "<|python_tag|>": "llama3_json",
        "<tool_call>": "hermes",
    }.items():
        (tmp_path / "chat_template.jinja").write_text(template)
        made = commands.command(str(tmp_path), "m", 1, settings)
        assert made[made.index("--tool-call-parser") + 1] == parser
    for wrong in (VllmSettings(python="/nowhere"), VllmSettings(python=sys.executable, args=["--port=1"])):
        with pytest.raises(ConfigError):
            commands.command("m", "m", 1, wrong)


@pytest.mark.skipif(bool(sys.modules.get("vllm")), reason="vLLM is here")
def test_without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="not installed in the kernel's environment") as caught:
        vllm_model("m", VllmSettings(), home=tmp_path)
    assert "[vllm] python" in str(caught.value.fix)


def test_closing_ends_it_at_once(make: Any) -> None:
    child, port = make()
    child.start()
    child.close()
    assert not answers(port)
    assert child.lives == 1
