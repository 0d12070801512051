"""The way out of a sandbox: to the servers on the list, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aios_kernel.tools.confinement import Confinement
from aios_kernel.tools.isolation import places
from aios_kernel.tools.isolation.level import Job, Runner
from aios_kernel.tools.isolation.proxy import AllowList, serve

CLIENT = """
import json, sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
except Exception as error:
    print("REFUSED", error, error.read().decode() if hasattr(error, "read") else "")
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Says what was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps([self.path, dict(self.headers)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextlib.asynccontextmanager
async def proxy(*allowed: str) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    async with serve(AllowList(allowed))(listener):
        yield port


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


# --- from inside a sandbox -------------------------------------------------------------------------------------------


async def fetch(sandbox: Runner, url: str, *allowed: str) -> str:
    confinement = Confinement(read=places.of_python(), network=list(allowed))
    job = Job(argv=[places.interpreter(), "-I", "-S", "-c", CLIENT, url], confinement=confinement, time_s=60)
    outcome = await sandbox.run(job)
    return outcome.stdout.decode() + outcome.stderr.decode()


async def test_a_sandbox_reaches_what_is_listed(sandbox: Runner, web: int) -> None:
    assert json.loads(await fetch(sandbox, f"http://127.0.0.1:{web}/x?y=1", f"127.0.0.1:{web}"))[0] == "/x?y=1"


async def test_a_sandbox_reaches_nobody_else(sandbox: Runner, web: int) -> None:
    assert "REFUSED" in await fetch(sandbox, f"http://127.0.0.1:{web}/")
    assert "not on the tool's network list" in await fetch(sandbox, f"http://127.0.0.1:{web}/", "example.org:443")
    assert "not on the tool's network list" in await fetch(sandbox, f"http://127.0.0.1:{web}/", f"127.0.0.1:{web + 1}")


async def test_no_other_way_leads_out(sandbox: Runner, web: int) -> None:
    """With a list, straight connections still end in the sandbox's own network."""
    script = (
        "import socket\n"
        f"for address in (('127.0.0.1', {web}), ('10.0.0.1', 80), ('192.0.2.1', 80)):\n"
        "    try: socket.create_connection(address, timeout=2); print('GOT')\n"
        "    except OSError as error: print('BLOCKED', error)\n"
        "print(open('/proc/net/dev').read().count(':'), 'interfaces')\n"
    )
    confinement = Confinement(read=places.of_python(), network=[f"127.0.0.1:{web}"])
    job = Job(argv=[places.interpreter(), "-I", "-S", "-c", script], confinement=confinement, time_s=60)
    outcome = await sandbox.run(job)
    assert b"GOT" not in outcome.stdout
    assert outcome.stdout.count(b"BLOCKED") == 3, outcome
    assert b"1 interfaces" in outcome.stdout


async def test_calls_side_by_side_have_lists_of_their_own(sandbox: Runner, web: int) -> None:
    url = f"http://127.0.0.1:{web}/"
    lists = [f"127.0.0.1:{web}", "example.org:80"] * 3
    answers = await asyncio.gather(*(fetch(sandbox, url, allowed) for allowed in lists))
    assert ["REFUSED" in answer for answer in answers] == [False, True] * 3


# --- the proxy by itself ---------------------------------------------------------------------------------------------


async def test_a_tunnel_to_what_is_listed(web: int) -> None:
    async with proxy(f"127.0.0.1:{web}") as port:
        tunnelled = f"CONNECT 127.0.0.1:{web} HTTP/1.1\r\n\r\nGET /t HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        answer = await ask(port, tunnelled.encode())
        assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
        assert b'"/t"' in answer


async def test_a_body_is_passed_on(web: int) -> None:
    body = b"x" * 300_000
    async with proxy(f"127.0.0.1:{web}") as port:
        head = f"POST http://127.0.0.1:{web}/ HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert (await ask(port, head + body)).endswith(b"\r\n\r\n" + body)


async def test_what_is_said_to_the_proxy_stays_there(web: int) -> None:
    async with proxy(f"127.0.0.1:{web}") as port:
        request = (
            f"GET http://user@127.0.0.1:{web} HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: secret\r\n"
            "Connection: keep-alive\r\nX-Own: 1\r\n\r\n"
        )
        path, headers = json.loads((await ask(port, request.encode())).partition(b"\r\n\r\n")[2])
    assert path == "/"
    assert headers == {"Host": f"127.0.0.1:{web}", "X-Own": "1", "Connection": "close"}


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET http://127.0.0.1:1/ HTTP/1.1", 403),
        ("CONNECT 127.0.0.1:1 HTTP/1.1", 403),
        ("GET http://localhost:{port}/ HTTP/1.1", 403),
        ("GET https://127.0.0.1:{port}/ HTTP/1.1", 400),
        ("GET / HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:{port}:9 HTTP/1.1", 400),
        ("CONNECT [::1 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:99999999 HTTP/1.1", 400),
        ("CONNECT  HTTP/1.1", 400),
        ("nonsense", 400),
        ("GET http://127.0.0.1:{port}/ x HTTP/1.1", 400),
        ("\x00\xff", 400),
    ],
)
async def test_everything_else_is_refused(web: int, request_line: str, status: int) -> None:
    async with proxy(f"127.0.0.1:{web}", f"localhost:{web}") as port:
        answer = await ask(port, request_line.format(port=web).encode("latin-1") + b"\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer


async def test_a_server_that_does_not_answer_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = unused.getsockname()[1]
        async with proxy(f"127.0.0.1:{dead}") as port:
            assert (await ask(port, f"CONNECT 127.0.0.1:{dead} HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 502")


async def test_a_head_without_end_is_dropped() -> None:
    async with proxy() as port:
        assert await ask(port, b"GET /" + b"x" * 200_000) == b""


@pytest.mark.parametrize(
    ("listed", "host", "port", "allowed"),
    [
        ("example.org:443", "example.org", 443, True),
        ("Example.ORG:443", "EXAMPLE.org", 443, True),
        ("example.org:443", "example.org", 80, False),
        ("example.org:443", "a.example.org", 443, False),
        ("example.org:443", "example.org.evil.example", 443, False),
        ("*.example.org:443", "a.example.org", 443, True),
        ("*.example.org:443", "a.b.example.org", 443, True),
        ("*.example.org:443", "example.org", 443, False),
        ("*.example.org:443", "evilexample.org", 443, False),
        ("[::1]:80", "::1", 80, True),
        ("127.0.0.1:80", "127.0.0.1", 80, True),
        ("127.0.0.1:80", "2130706433", 80, False),
        ("127.0.0.1:80", "127.1", 80, False),
    ],
)
def test_the_list(listed: str, host: str, port: int, allowed: bool) -> None:
    assert AllowList([listed]).allows(host, port) is allowed
