"""The OpenAI-compatible front: a real kernel, a real port, OpenAI's SDK and plain HTTP as clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from aios_kernel.client import Client
from aios_kernel.config import Config, token_file_of
from aios_kernel.errors import ConfigError
from aios_kernel.server.http_agents import Caller, HttpAgents
from aios_kernel.server.http_app import MOST_BODY_BYTES
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import KernelInfo, KernelKill, KernelPs, KernelTrace, ProgramInfo, Programs, Span, Trace

GUEST_TOKEN = "guest-token"
TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "say hi"}]}


class City(BaseModel):
    name: str
    people: int


def config_of(home: Path, http: str) -> Config:
    """A kernel with the fake model, and a second principal."""
    guest = hashlib.sha256(GUEST_TOKEN.encode()).hexdigest()
    return Config(
        kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact", http=http,
        models={"alias": "fake"}, principals={"guest": guest},
    )  # fmt: skip


class Served:
    """A kernel with its front, and a look at it from inside."""

    def __init__(self, config: Config) -> None:
        self.running = InProcessKernel(config)
        assert self.running.kernel is not None
        assert self.running.kernel.http_url is not None
        self.url = self.running.kernel.http_url
        self.token = token_file_of(config).read_text()
        self.connection = self.running.connect("watcher")

    def ps(self) -> list[ProgramInfo]:
        """Programs that came by HTTP."""
        answer = Client(self.connection).call(KernelPs())
        assert isinstance(answer, Programs)
        return [row for row in answer.programs if row.framework == "http"]

    def chats(self, agent: str) -> list[Span]:
        """The chats of an agent that have ended."""
        answer = Client(self.connection).call(KernelTrace())
        assert isinstance(answer, Trace)
        return [span for span in answer.spans if span.agent == agent and span.syscall == "llm.chat"]

    def stop(self) -> None:
        self.connection.close()
        self.running.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served, None, None]:
    """One kernel for the module."""
    served = Served(config_of(tmp_path_factory.mktemp("aios"), "127.0.0.1:0"))
    yield served
    served.stop()


@pytest.fixture
async def client(served: Served) -> AsyncGenerator[AsyncOpenAI, None]:
    """OpenAI's SDK, pointed at the front."""
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.token, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(served: Served) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Plain HTTP with the token."""
    headers = {"authorization": f"Bearer {served.token}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as http:
        yield http


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.01)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_chat(client: AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(model="gpt-4o", messages=user("say hello"))
    assert completion.choices[0].message.content == "hello"
    assert completion.model == "fake"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2
    assert completion._request_id == completion.id


async def test_chat_streamed(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=user("think 3"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "w0 w1 w2"
    assert chunks[-1].usage is not None


async def test_several_answers(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=user("say a b"), n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(n, "a b") for n in range(3)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * 3
    alone = await client.chat.completions.create(model="m", messages=user("say a b"))
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    texts, ends = ["", ""], [0, 0]
    stream = await client.chat.completions.create(model="m", messages=user("say a b c"), n=2, stream=True)
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason == "stop"
    assert (texts, ends) == (["a b c", "a b c"], [1, 1])


async def test_tools(client: AsyncOpenAI) -> None:
    messages = user('call add {"a": 1}\ncall add {"a": 2}')
    message = (await client.chat.completions.create(model="m", messages=messages, tools=[TOOL])).choices[0].message
    assert message.tool_calls is not None
    messages += [message, *({"role": "tool", "tool_call_id": c.id, "content": c.id} for c in message.tool_calls)]
    answer = await client.chat.completions.create(model="m", messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "tool said: " + " | ".join(c.id for c in message.tool_calls)


async def test_parse_and_stream_helpers(client: AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(model="m", messages=user("x"), response_format=City)
    assert parsed.choices[0].message.parsed == City(name="text", people=1)
    async with client.chat.completions.stream(model="m", messages=user("x"), response_format=City) as stream:
        assert (await stream.get_final_completion()).choices[0].message.parsed == City(name="text", people=1)
    async with client.responses.stream(model="m", input="x", text_format=City) as events:
        assert (await events.get_final_response()).output_parsed == City(name="text", people=1)


async def test_responses(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="m", input="say hello", instructions="be kind")
    assert (response.output_text, response.model) == ("hello", "fake")
    streamed = [event async for event in await client.responses.create(model="m", input="think 2", stream=True)]
    assert [event.type for event in streamed if "delta" not in event.type][-1] == "response.completed"


async def test_responses_that_are_held_to_a_choice(client: AsyncOpenAI) -> None:
    held = {"structured_outputs": {"choice": ["yes", "no"]}}
    response = await client.responses.create(model="m", input="anything", extra_body=held)
    assert response.output_text == "yes"
    with pytest.raises(openai.BadRequestError, match="Chat Completions"):
        await client.responses.create(model="m", input="x", extra_body={"n": 2})


async def test_embeddings(client: AsyncOpenAI) -> None:
    as_floats = await client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    as_base64 = await client.embeddings.create(model="e", input=["a", "b"])
    assert as_base64.data[1].embedding == pytest.approx(as_floats.data[1].embedding, abs=1e-6)


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in await client.models.list()] == ["fake", "alias"]
    assert (await client.models.retrieve("alias")).id == "alias"
    with pytest.raises(openai.NotFoundError, match="nope"):
        await client.models.retrieve("nope")


async def test_health_needs_no_token(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as http:
        for path in ("/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200


async def test_a_large_body(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=user("say big\n" + "x" * 300_000))
    assert answer.choices[0].message.content == "big"


# --- errors ---------------------------------------------------------------------------------------------------------


async def test_errors_are_openais(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="modalities") as caught:
        await client.chat.completions.create(model="m", messages=user("x"), modalities=["audio"])
    assert caught.value.code == "unsupported"
    with pytest.raises(openai.BadRequestError, match="fix: ") as caught:
        await client.chat.completions.create(model="m", messages=user("word " * 70_000), stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
        await client.chat.completions.create(model="m", messages=user("x"), extra_body={"prompt_logprobs": 1})
    body = {"guided_regex": "a", "guided_choice": ["a"]}
    with pytest.raises(openai.BadRequestError, match="several structures"):
        await client.chat.completions.create(model="m", messages=user("x"), extra_body=body)
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        await client.responses.create(model="m", input="x", previous_response_id="resp_1")


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "said"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "not JSON"),
        ("POST", "/v1/chat/completions", b"\xff", 400, "not JSON"),
        ("POST", "/v1/chat/completions", b"[]", 400, "JSON object"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "not JSON"),
        ("POST", "/v1/chat/completions", b"{}", 400, "messages"),
        ("POST", "/v1/images/generations", b"{}", 404, "/v1/images/generations"),
        ("GET", "/v1/chat/completions", b"", 405, "GET /v1/chat/completions"),
        ("GET", "/elsewhere", b"", 404, "/elsewhere"),
    ],
)
async def test_bad_requests(
    http: httpx.AsyncClient, method: str, path: str, content: bytes, status: int, said: str
) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = await http.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_only_json_is_read(http: httpx.AsyncClient) -> None:
    for headers in ({"content-type": "text/plain"}, {}):
        answer = await http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers)
        assert answer.status_code == 415
        assert "fix: send Content-Type: application/json" in answer.json()["error"]["message"]


async def test_a_body_has_its_limit(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    announced = await http.post("/v1/chat/completions", headers=headers, content=b" " * (MOST_BODY_BYTES + 1))
    assert announced.status_code == 413

    async def unannounced() -> AsyncGenerator[bytes, None]:
        for _ in range(MOST_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    # The front answers and hangs up while the rest is still being sent.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert (await http.post("/v1/chat/completions", headers=headers, content=unannounced())).status_code == 413


async def test_a_kernel_that_shuts_down_says_so(tmp_path: Path) -> None:
    served = await asyncio.to_thread(Served, config_of(tmp_path, "localhost:0"))
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.token, max_retries=0) as client:
        stream = await client.chat.completions.create(model="m", messages=user("ponder"), stream=True)
        await anext(stream)
        stopping = asyncio.create_task(asyncio.to_thread(served.stop))
        with pytest.raises(openai.APIError, match="program has ended"):
            async for _ in stream:
                pass
        await stopping
        with pytest.raises(openai.APIConnectionError):
            await client.models.list()


# --- who may come in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer {token}", 200),
        ("bearer {token}", 200),
        ("Bearer {token}:writer", 200),
        (f"Bearer {GUEST_TOKEN}", 200),
        ("Bearer wrong", 401),
        ("Bearer wrong:writer", 401),
        ("Bearer {token}x", 401),
        ("Bearer :{token}", 401),
        ("Basic {token}", 401),
        ("{token}", 401),
        (None, 401),
    ],
)
async def test_the_token_decides(served: Served, authorization: str | None, status: int) -> None:
    headers = {"authorization": authorization.format(token=served.token)} if authorization is not None else {}
    async with httpx.AsyncClient(base_url=served.url, headers=headers) as http:
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/nothing")):
            answer = await http.request(method, path, json=CHAT)
            assert answer.status_code == (404 if status == 200 and path == "/v1/nothing" else status)
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:80"}, 403),
        ({"host": "192.168.0.7"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "null"}, 403),
        ({"x-aios-priority": "batch"}, 200),
        ({"x-aios-priority": "urgent"}, 400),
        ({"x-aios-colour": "red"}, 400),
        ({"x-aios-agent": "x" * 300}, 400),
    ],
)
async def test_headers_that_must_not_come_in(http: httpx.AsyncClient, headers: dict[str, str], status: int) -> None:
    assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == status
    if "host" in headers or "origin" in headers:
        assert (await http.get("/healthz", headers=headers)).status_code == status


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:0",
        "192.168.0.7:80",
        "example.org:80",
        "[::]:0",
        "8400",
        "127.0.0.1:x",
        ":80",
        "unix,0.0.0.0:0",
        "unix,",
    ],
)
def test_only_loopback_is_listened_on(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InProcessKernel(config_of(tmp_path, address))
    assert caught.value.fix


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen"):
        InProcessKernel(config_of(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}"))


@pytest.fixture
def by_file(tmp_path: Path) -> Generator[Served, None, None]:
    """A kernel with its front on a unix socket and on a port."""
    served = Served(config_of(tmp_path, "unix,127.0.0.1:0"))
    yield served
    served.stop()
    assert not (tmp_path / "run" / "http.sock").exists()


async def test_a_unix_socket(by_file: Served, tmp_path: Path) -> None:
    file, port = by_file.url.split(",")
    path = Path(file.removeprefix("unix:"))
    assert path == tmp_path / "run" / "http.sock"
    assert os.stat(path).st_mode & 0o777 == 0o600
    there = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=there, base_url="http://localhost") as http:
        chat = await http.post("/v1/chat/completions", json=CHAT, headers={"x-aios-agent": "neighbour"})
        assert chat.json()["choices"][0]["message"]["content"] == "hi"
        assert (await http.get("/v1/models", headers={"authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get("/v1/models", headers={"origin": "null"})).status_code == 403
        assert (await http.get("/v1/models", headers={"host": "evil.example"})).status_code == 403
        client = AsyncOpenAI(base_url="http://localhost/v1", api_key=f"{by_file.token}:keyed", http_client=http)
        stream = await client.chat.completions.create(model="m", messages=user("say by file"), stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "by file"
    async with httpx.AsyncClient(base_url=port) as http:
        assert (await http.get("/v1/models")).status_code == 401, "a port is open to every user of the machine"
    assert {row.agent for row in by_file.ps()} == {"neighbour", "keyed"}


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        InProcessKernel(config_of(tmp_path / "home", f"127.0.0.1:0,unix:{path}"))
    assert path.read_text() == "mine"


async def test_server_sent_events(http: httpx.AsyncClient) -> None:
    async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer:
        assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        events = [line async for line in answer.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"
    async with http.stream("POST", "/v1/responses", json={"input": "say hi", "stream": True}) as answer:
        lines = [line async for line in answer.aiter_lines() if line]
    assert [line.partition(": ")[0] for line in lines] == ["event", "data"] * (len(lines) // 2)


# --- identity -------------------------------------------------------------------------------------------------------


async def test_token_and_headers_name_the_agent(served: Served, http: httpx.AsyncClient) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=f"{served.token}:key-agent") as by_key:
        for _ in range(2):
            await by_key.chat.completions.create(model="m", messages=user("hi"))
    headers = {"x-aios-agent": "header-agent", "x-aios-priority": "interactive", "x-aios-group": "team"}
    await http.post("/v1/chat/completions", json=CHAT, headers=headers)
    guest = {"authorization": f"Bearer {GUEST_TOKEN}:visitor"}
    await http.post("/v1/chat/completions", json=CHAT, headers=guest)
    await http.post("/v1/chat/completions", json=CHAT, headers={"x-aios-agent": "plain-agent"})
    rows = {row.agent: row for row in served.ps()}
    assert (rows["plain-agent"].priority, rows["plain-agent"].framework) == ("normal", "http")
    assert rows["key-agent"].llm_calls == 2, "one program for both calls"
    assert (rows["header-agent"].priority, rows["header-agent"].group) == ("interactive", "team")
    assert "visitor" not in rows, "another principal's"


async def test_a_header_names_the_program(served: Served, http: httpx.AsyncClient) -> None:
    for program in ("run-1", "run-2", "run-1", None):
        headers = {"x-aios-agent": "runner"} | ({"x-aios-program": program} if program else {})
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    rows = {row.program.partition(".")[0]: row.llm_calls for row in served.ps() if row.agent == "runner"}
    assert rows["run-1"] == 2
    assert rows["run-2"] == 1
    assert len(rows) == 3
    for wrong in ("a b", "x" * 65, "a/b", ""):
        answer = await http.post("/v1/chat/completions", json=CHAT, headers={"x-aios-program": wrong})
        assert answer.status_code == 400
        assert "x-aios-program" in answer.json()["error"]["message"]


async def test_a_killed_agent_may_come_back(served: Served, http: httpx.AsyncClient) -> None:
    headers = {"x-aios-agent": "phoenix"}
    assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    await asyncio.to_thread(Client(served.connection).call, KernelKill(target="phoenix"))
    assert (await http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
    assert [row.state for row in served.ps() if row.agent == "phoenix"] == ["finished", "idle"]


async def test_an_idle_agent_is_finished(served: Served) -> None:
    kernel = served.running.kernel
    assert kernel is not None

    async def ask_and_wait() -> None:
        agents = HttpAgents(kernel, idle_s=0.2)
        await agents.ask(Caller("me", "sleeper"), KernelInfo()).result()
        program = kernel.agents.table.named("sleeper", "me")[0]
        assert program.state == "idle"
        await until(lambda: program.state != "idle")
        assert (program.state, program.error) == ("finished", None)
        assert program.finished_s is not None
        assert program.finished_s - program.started_s >= 0.2
        agents.close()

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask_and_wait(), kernel.loop))


# --- clients that go away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_cancels_the_generation(served: Served, stream: bool) -> None:
    agent = f"quitter-{stream}"
    client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=f"{served.token}:{agent}", max_retries=0)
    call = client.chat.completions.create(model="m", messages=user("ponder"), stream=stream)
    if stream:
        answer: Any = await call
        await anext(answer)
        await answer.close()
    else:
        task = asyncio.create_task(call)
        await until(lambda: any(row.agent == agent and row.state == "running" for row in served.ps()))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await client.close()
    await until(lambda: bool(served.chats(agent)))
    (span,) = served.chats(agent)
    assert span.outcome == "cancelled"
    assert span.completion_tokens < 60_000


async def test_hanging_up_inside_the_body_harms_nobody(served: Served, http: httpx.AsyncClient) -> None:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {served.token}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_many_at_once(client: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(client.chat.completions.create(model="m", messages=user(f"say {number}")) for number in range(32))
    )
    assert [answer.choices[0].message.content for answer in answers] == [str(number) for number in range(32)]
