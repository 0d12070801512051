"""A bench that is told to stop ends the server that it started, in whatever state that is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """#!{python}
import http.server, os, sys, time
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
if os.fork() == 0:  # as vLLM, whose engine is a process of its own
    open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
    time.sleep(600)
if {hangs}:
    time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{{"usage": {{}}, "choices": [{{"token_ids": [1, 2]}}]}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
BENCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with ctrl-C ignored
from pathlib import Path
from aios_evals.contention.run import row_of
from aios_evals.contention.sessions import Call, Session
from aios_evals.contention.vllm_server import VllmServer
from aios_evals.terminated import ended_in_order

session = Session("s", [Call(8, 2, -1, None, 0.0)] + [Call(8, 2, -1, None, 0.2)] * 200)
with ended_in_order():
    row_of(lambda: VllmServer(Path(sys.argv[1]), Path("model"), 512, 64, 1), [session])
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_is_left_running(tmp_path: Path, number: signal.Signals, hangs: bool) -> None:
    python, pids = tmp_path / "python", tmp_path / "pids"
    python.write_text(SERVER.format(python=sys.executable, pids=str(pids), hangs=hangs))
    python.chmod(0o700)
    bench = subprocess.Popen([sys.executable, "-c", BENCH, str(python)], stderr=subprocess.DEVNULL)
    ends_at = time.monotonic() + 60
    while not pids.exists() or len(pids.read_text().splitlines()) < 2:
        assert time.monotonic() < ends_at
        time.sleep(0.05)
    started = [int(line) for line in pids.read_text().splitlines()]
    time.sleep(0.0 if hangs else 1.0)  # until its calls are under way
    os.kill(bench.pid, number)
    try:
        assert bench.wait(40) != 0
    finally:
        bench.kill()
        bench.wait()
    while any(map(alive, started)):
        assert time.monotonic() < ends_at
        time.sleep(0.05)
