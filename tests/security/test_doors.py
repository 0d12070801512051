"""Who gets in by which door, and what becomes of those who only want to do harm.

What `kernel/tests/server` already holds is not repeated here: see docs/security.md for the whole list.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import socket
import struct
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.routing import Route

from aios_evals.siege.world import quick
from aios_kernel import errors, frames
from aios_kernel.client import Client, Connection
from aios_kernel.config import Config, socket_of, token_file_of
from aios_kernel.server import http_app, http_patience
from aios_kernel.server.http_app import Front
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    ABI_VERSION,
    AgentSpawn,
    Failed,
    Hello,
    KernelFrame,
    KernelInfo,
    KernelKill,
    KernelPs,
    KernelStatus,
    LlmChat,
    LlmResult,
    MemoryAdd,
    MemorySearch,
    Message,
    Programs,
    Request,
    Welcome,
)

GUEST = "guest-token"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "say hi"}]}
PUBLIC = {"/kernel", "/openapi.json", "/healthz", "/readyz"}
"""Paths that tell nobody's affairs."""


class House:
    """A kernel with all its doors."""

    def __init__(self, home: Path) -> None:
        guest = hashlib.sha256(GUEST.encode()).hexdigest()
        self.config: Config = msgspec.structs.replace(quick(home), http="unix,127.0.0.1:0", principals={"guest": guest})
        self.running = InProcessKernel(self.config)
        assert self.running.kernel is not None
        assert self.running.kernel.http_url is not None
        self.kernel = self.running.kernel
        file, self.url = self.running.kernel.http_url.split(",")
        self.file = file.removeprefix("unix:")
        self.token = token_file_of(self.config).read_text()
        self.port = int(self.url.rpartition(":")[2])

    def client(self) -> Client:
        return Client(self.running.connect("watcher"))

    def alive(self) -> None:
        """An honest client is served as ever."""
        client = self.client()
        assert isinstance(client.call(LlmChat(messages=[Message(role="user", content="say yes")])), LlmResult)
        client.connection.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Generator[House, None, None]:
    made = House(tmp_path_factory.mktemp("aios"))
    yield made
    made.running.stop()


def paths(house: House) -> list[tuple[str, str]]:
    """Method and path of everything that HTTP serves."""
    front = Front(house.kernel, None, None)  # type: ignore[arg-type] - only its routes are looked at
    routes = [route for route in front.app().routes if isinstance(route, Route)]
    return [
        (method, route.path.replace("{name:path}", "fake"))
        for route in routes
        for method in sorted(route.methods or ())
        if method != "HEAD"
    ]


IDENTITIES = {
    "owner": "Bearer {token}",
    "owner's agent": "Bearer {token}:writer",
    "guest": f"Bearer {GUEST}",
    "wrong token": "Bearer wrong",
    "cut token": "Bearer {cut}",
    "somebody's token as a name": "Bearer wrong:{token}",
    "other scheme": "Basic {token}",
    "no token": "Bearer",
    "none": None,
}
ADMITTED = {"owner", "owner's agent", "guest"}


async def test_every_path_asks_for_a_token(house: House) -> None:
    served = paths(house)
    assert {path for _, path in served} > PUBLIC
    tried = 0
    async with httpx.AsyncClient(base_url=house.url) as http:
        for (method, path), (identity, header) in itertools.product(served, IDENTITIES.items()):
            headers = (
                {} if header is None else {"authorization": header.format(token=house.token, cut=house.token[:-1])}
            )
            body = CHAT if method == "POST" else None
            async with http.stream(method, path, headers=headers, json=body) as answer:  # some would never end
                if identity in ADMITTED or path in PUBLIC:
                    assert answer.status_code not in {401, 403}, (path, identity)
                else:
                    assert answer.status_code == 401, (path, identity)
                    assert house.token not in (await answer.aread()).decode()
            tried += 1
    assert tried == len(served) * len(IDENTITIES)


@pytest.mark.parametrize("path", ["//v1/models", "/./v1/models", "/V1/models", "/%76%31/models", "/v1%2fmodels",
                                  "/healthz/../v1/models", "/v1/models%00", "\\v1\\models"])  # fmt: skip
async def test_no_spelling_of_a_path_goes_round_the_guard(house: House, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split(b" ")[1] in {b"400", b"401", b"404"}, answer
    assert b'"fake"' not in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "rebound.example"}, 403),
        ({"host": "127.0.0.1@rebound.example"}, 403),
        ({"host": "rebound.example:127.0.0.1"}, 403),
        ({"host": "[::ffff:10.0.0.1]"}, 403),
        ({"host": "2130706433"}, 403),
        ({"host": "0x7f.1"}, 403),
        ({"host": "0.0.0.0"}, 403),
        ({"host": "localhost.rebound.example"}, 403),
        ({"origin": "http://localhost"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "chrome-extension://x"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "text/plain; application/json"}, 415),
        ({"content-type": ""}, 415),
    ],
)
@pytest.mark.parametrize("door", ["port", "file"])
async def test_a_page_in_a_browser_gets_nowhere(house: House, door: str, headers: dict[str, str], status: int) -> None:
    """A rebound name, a page's Origin, and the content types that a page may send unasked; with the right token."""
    there = httpx.AsyncHTTPTransport(uds=house.file) if door == "file" else None
    given = {"authorization": f"Bearer {house.token}", "content-type": "application/json"} | headers
    base = "http://localhost" if door == "file" else house.url
    async with httpx.AsyncClient(transport=there, base_url=base) as http:
        answer = await http.post("/v1/chat/completions", content=msgspec.json.encode(CHAT), headers=given)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


async def test_a_preflight_is_not_answered(house: House) -> None:
    async with httpx.AsyncClient(base_url=house.url) as http:
        headers = {"origin": "http://x.example", "access-control-request-method": "POST"}
        answer = await http.options("/v1/chat/completions", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


# --- the socket -------------------------------------------------------------------------------------------------------


def greet(house: House, token: str) -> tuple[socket.socket, Any]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(socket_of(house.config)))
    sock.sendall(frames.encode(Hello(version=ABI_VERSION, token=token)))
    return sock, read_frame(sock)


def read_frame(sock: socket.socket) -> Any:
    def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            assert more, "hung up"
            data += more
        return data

    (size,) = struct.unpack(">I", read(4))
    return msgspec.msgpack.decode(read(size), type=KernelFrame)


@pytest.mark.parametrize("token", ["", "wrong", "{token}x", "{cut}", "\x00{token}", "{token} ", "{hash}", "é" * 50])
def test_only_the_token_opens_the_socket(house: House, token: str) -> None:
    digest = hashlib.sha256(house.token.encode()).hexdigest()
    sock, answer = greet(house, token.format(token=house.token, cut=house.token[:-1], hash=digest))
    with sock:
        assert isinstance(answer, Failed)
        assert answer.code == errors.AuthError.code
        assert house.token not in answer.message + (answer.fix or "")
        assert sock.recv(1) == b""
    house.alive()


def test_a_guest_is_somebody_else(house: House) -> None:
    """Another principal, with a right token: it sees and ends nothing of the owner's."""
    owner = house.client()
    owner.call(AgentSpawn(program="owners-run", agent="writer"))
    owner.call(MemoryAdd(text="the owner's canary", id="n"), program="owners-run")
    sock, welcome = greet(house, GUEST)
    with sock:
        assert isinstance(welcome, Welcome)
        assert welcome.principal == "guest"
        calls = [
            KernelPs(), KernelKill(target="owners-run"), KernelKill(target="writer"),
            AgentSpawn(program="guests-run", agent="writer"), MemorySearch(query="canary", namespace="agent/writer"),
        ]  # fmt: skip
        for number, call in enumerate(calls, 1):
            program = "guests-run" if number == len(calls) else None
            sock.sendall(frames.encode(Request(id=number, call=call, program=program)))
            answer = read_frame(sock)
            assert b"owner" not in msgspec.msgpack.encode(answer).replace(b"owners-run", b"")
    rows = owner.call(KernelPs())
    assert isinstance(rows, Programs)
    assert "owners-run" in {row.program for row in rows.programs if row.state != "finished"}
    owner.connection.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_sent_away_even_with_the_token() -> None:
    """The folder keeps others out; where somebody opened it, the peer's user id still does."""
    with tempfile.TemporaryDirectory(prefix="aios-") as home:
        there = House(Path(home))
        with contextlib.closing(there.client().connection):
            socket_path = socket_of(there.config)
            os.chmod(home, 0o755)
            os.chmod(socket_path.parent, 0o755)
            os.chmod(socket_path, 0o666)
            assert _as_nobody(str(socket_path), there.token) == b"auth"
        there.running.stop()


def _as_nobody(path: str, token: str) -> bytes:
    """What a child of another user id is answered: an error's code, or how far it came."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"failed"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(10)
                sock.connect(path)
                with contextlib.suppress(BrokenPipeError):  # refused before it could say anything
                    sock.sendall(frames.encode(Hello(version=ABI_VERSION, token=token)))
                answer = read_frame(sock)
                said = answer.code.encode() if isinstance(answer, Failed) else b"welcome"
        except BaseException as error:  # told to the parent
            said = repr(error).encode()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


# --- too much, too slow -----------------------------------------------------------------------------------------------


async def _hang_up_of(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> bytes:
    """What is said before the other side hangs up; it must do so within the time."""
    said = b""
    async with asyncio.timeout(seconds):
        with contextlib.suppress(ConnectionResetError):  # what was still on its way to the other side is thrown away
            while piece := await reader.read(4096):
                said += piece
    writer.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await writer.wait_closed()
    return said


@pytest.mark.parametrize("begin", [b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: a"])
async def test_headers_that_do_not_come_to_an_end_are_cut_off(
    house: House, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_patience, "HEADERS_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)

    async def drip() -> None:
        while True:
            writer.write(b"a" if begin.endswith(b"a") else b"")
            await asyncio.sleep(0.05)

    writer.write(begin)
    dripping = asyncio.create_task(drip())
    assert (await _hang_up_of(reader, writer, 10)).startswith(b"HTTP/1.1 408")
    dripping.cancel()
    house.alive()


async def test_a_second_request_is_awaited_no_longer(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_patience, "HEADERS_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.5)  # between requests it may wait
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /heal")
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    assert (await _hang_up_of(reader, writer, 10)).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("begin", [b"GET /" + b"a" * 100, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Large: "])
async def test_headers_have_a_limit(house: House, begin: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(begin)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for _ in range(64):
            writer.write(b"a" * 16_384)
            await writer.drain()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it hung up while more was under way
        assert (await _hang_up_of(reader, writer, 10)).startswith(b"HTTP/1.1 4")
    house.alive()


async def test_a_body_that_does_not_arrive_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_app, "_BODY_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {house.token}\r\n"
    writer.write(
        f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{{".encode()
    )
    assert (await _hang_up_of(reader, writer, 10)).startswith(b"HTTP/1.1 408")
    house.alive()


async def test_a_body_of_a_stranger_is_not_read(house: House) -> None:
    """Announced large, sent without end: the answer comes before the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999999\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)).startswith(b"HTTP/1.1 401")
    writer.close()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000, b'{"a":' * 100_000, b'{"messages": ' + b"9" * 100_000 + b"}", b"\xff\xfe", b'"\\ud800"', b"NaN",
        b"{" + b'"a":1,' * 50_000 + b'"a":1}',
    ],
)  # fmt: skip
async def test_hostile_json_is_a_typed_error(house: House, body: bytes) -> None:
    headers = {"authorization": f"Bearer {house.token}", "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as http:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/embeddings"):
            answer = await http.post(path, content=body)
            assert answer.status_code == 400, answer.text[:200]
            assert answer.json()["error"]["type"] == "invalid_request_error"
    house.alive()


async def test_a_compressed_bomb_is_not_opened(house: House) -> None:
    headers = {"authorization": f"Bearer {house.token}", "content-type": "application/json"}
    headers["content-encoding"] = "gzip"
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as http:
        answer = await http.post("/v1/chat/completions", content=b"\x1f\x8b" + b"\x00" * 1000)
    assert answer.status_code == 400


def test_many_silent_connections_keep_nobody_out(house: House) -> None:
    """Two hundred that never greet, and as many that hang up in the middle of a frame."""
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(400)]
    try:
        for number, sock in enumerate(silent):
            sock.connect(str(socket_of(house.config)))
            if number % 2:
                sock.sendall(struct.pack(">I", 50_000_000) + b"half")
                sock.close()
        house.alive()
    finally:
        for sock in silent:
            sock.close()
    house.alive()


def test_a_client_that_floods_is_told_and_others_are_served(house: House) -> None:
    flooding: Connection = house.running.connect("flood")

    class Sink:
        def put(self, frame: Any) -> None:
            pass

    for _ in range(3_000):
        flooding.submit(KernelInfo(), Sink(), program=None, timeout_s=None)
    began = time.monotonic()
    house.alive()
    assert time.monotonic() - began < 30
    flooding.close()
    client = house.client()
    assert isinstance(client.call(KernelInfo()), KernelStatus)
    client.connection.close()
