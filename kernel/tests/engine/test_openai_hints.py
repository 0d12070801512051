"""The policy's intent at a model server: hints, slices and sessions, against a server that notes what it is asked."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from aios_kernel.chat.generation import Generation
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.openai import openai_model
from aios_kernel.errors import AiosError, ConfigError, InvalidRequest
from aios_kernel.plugins import Plugins
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.protocol import Policy
from aios_kernel.scheduler.settings import ServerHints
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Priority, Sampling, ToolSpec

POLICIES = Plugins().named("aios_kernel_policies")


class Recorder:
    """Answers with the words w0 w1 ... up to its own end, going on from a prefix; notes bodies and headers."""

    def __init__(self, words: int = 12, pace_s: float = 0.0) -> None:
        self.words, self.pace_s = words, pace_s
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([sock],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _models(self, request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "tiny"}]})

    async def _chat(self, request: Request) -> StreamingResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return StreamingResponse(self._words(body), media_type="text/event-stream")

    async def _words(self, body: dict[str, Any]) -> AsyncGenerator[str, None]:
        last = body["messages"][-1]
        begun = len(last["content"].split()) if body.get("continue_final_message") else 0
        most = body.get("max_tokens", 1 << 20)
        end = min(self.words, begun + most)
        for number in range(begun, end):
            yield _event({"choices": [{"delta": {"content": f"w{number} "}}]})
            await asyncio.sleep(self.pace_s)
        reason = "stop" if end == self.words else "length"
        yield _event({"choices": [{"delta": {}, "finish_reason": reason}]})
        yield _event({"choices": [], "usage": {"prompt_tokens": 5 + begun, "completion_tokens": end - begun}})
        yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


class World:
    """A dispatcher with a policy over servers."""

    def __init__(self, url: str, policy: Policy, *, slots: int = 4, **hints: Any) -> None:
        self.model = openai_model("tiny", url, slots=slots, hints=ServerHints(**hints))
        self._service = ChatService(self.model, Config())
        self._changed = threading.Condition()
        self.updates: list[Update] = []
        self.dispatcher = Dispatcher(self.model, policy, self._deliver)
        self.dispatcher.start()

    def start(
        self, program: str = "p", priority: Priority = "normal", root: str = "", call: LlmChat | None = None
    ) -> Generation:
        call = call or LlmChat(messages=[Message("user", "go")])
        owner = Program(program, "a", "me", "g", priority=priority, root=root)
        generation = self._service.prepare(self.dispatcher.next_id(), call, owner)
        self.dispatcher.submit(generation)
        return generation

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=20)

    def hear(self, generation: Generation) -> LlmResult:
        self.until(lambda: any(u.ended and u.generation is generation for u in self.updates))
        assert isinstance(generation.ended, LlmResult), generation.ended
        return generation.ended

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self.updates += updates
            self._changed.notify_all()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.stop()


@pytest.fixture
def world() -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(url: str, policy: str = "fifo", options: dict[str, Any] | None = None, **more: Any) -> World:
        made.append(World(url, POLICIES[policy](options or {}), **more))
        return made[-1]

    yield make
    for each in made:
        each.dispatcher.stop()


def words(first: int, end: int) -> str:
    return "".join(f"w{number} " for number in range(first, end))


# --- hints ----------------------------------------------------------------------------------------------------------


def test_nothing_is_said_unless_it_is_switched_on(recorder: Recorder, world: Callable[..., World]) -> None:
    here = world(recorder.url)
    assert here.hear(here.start(priority="interactive", root="top")).text == words(0, 12)
    assert set(recorder.bodies[0]) == {"model", "messages", "stream", "stream_options"}
    assert not here.model.engine.capabilities.snapshot


def test_what_is_switched_on_is_said(recorder: Recorder, world: Callable[..., World]) -> None:
    here = world(recorder.url, priority=True, cache_salt=True, session_header="x-session-id", agent_hints=True)
    limited = LlmChat(messages=[Message("user", "go")], sampling=Sampling(max_tokens=50))
    for priority in ("interactive", "normal", "batch"):
        here.hear(here.start(priority=priority, root="top\n", call=limited))  # type: ignore[arg-type]
    assert [body["priority"] for body in recorder.bodies] == [-1, 0, 1]
    assert [body["nvext"]["agent_hints"] for body in recorder.bodies] == [
        {"priority": 1, "osl": 50},
        {"priority": 0, "osl": 50},
        {"priority": -1, "osl": 50},
    ]
    assert len({body["cache_salt"] for body in recorder.bodies}) == 1
    assert {headers["x-session-id"] for headers in recorder.headers} == {"top?"}


def test_a_strict_server_refuses_and_says_what(tmp_path: Path, world: Callable[..., World]) -> None:
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact", http="127.0.0.1:0")
    kernel = InProcessKernel(config)
    try:
        assert kernel.kernel is not None
        token = (tmp_path / "run" / "token").read_text()
        url = f"{kernel.kernel.http_url}/v1"
        model = openai_model("", url, api_key=token, hints=ServerHints(cache_salt=True))
        service, ended = ChatService(model, Config()), threading.Event()
        dispatcher = Dispatcher(
            model, POLICIES["fifo"]({}), lambda updates: ended.set() if any(u.ended for u in updates) else None
        )
        dispatcher.start()
        call = LlmChat(messages=[Message("user", "say yes")])
        generation = service.prepare(dispatcher.next_id(), call, Program("p", "a", "me", "g"))
        dispatcher.submit(generation)
        assert ended.wait(20)
        dispatcher.stop()
        assert isinstance(generation.ended, InvalidRequest)
        assert "cache_salt" in str(generation.ended)
    finally:
        kernel.stop()


@pytest.mark.parametrize("name", ["x y", "a:b", "a\r\nb", "é"])
def test_a_session_header_must_be_a_header(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="session_header"):
        msgspec.convert({"session_header": name}, ServerHints)


# --- slices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 3, 4, 7, 11, 30])
def test_an_answer_in_slices_is_the_same_answer(
    recorder: Recorder, world: Callable[..., World], limit: int | None
) -> None:
    here = world(recorder.url, slice_tokens=4)
    call = LlmChat(messages=[Message("user", "go")], sampling=Sampling(max_tokens=limit))
    result = here.hear(here.start(call=call))
    given = min(limit or 12, 12)
    assert result.text == words(0, given)
    assert result.finish_reason == ("stop" if given == 12 else "length")
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, given)
    assert recorder.bodies[0]["max_tokens"] == min(4, limit or 4)
    assert recorder.bodies[0]["messages"][-1] == {"role": "user", "content": "go"}
    for number, body in enumerate(recorder.bodies[1:], start=1):
        assert body["messages"][-1] == {"role": "assistant", "content": words(0, 4 * number)}
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("extra", [{"schema": {"type": "object"}}, {"tools": [ToolSpec(name="f")]}])
def test_what_cannot_go_on_from_its_text_is_asked_for_as_a_whole(
    recorder: Recorder, world: Callable[..., World], extra: dict[str, Any]
) -> None:
    here = world(recorder.url, slice_tokens=4)
    here.hear(here.start(call=LlmChat(messages=[Message("user", "go")], **extra)))
    assert len(recorder.bodies) == 1
    assert "max_tokens" not in recorder.bodies[0]


@pytest.mark.parametrize("cut", [True, False])
def test_an_urgent_call_takes_the_place_of_another(world: Callable[..., World], recorder: Recorder, cut: bool) -> None:
    recorder.words, recorder.pace_s = 60, 0.02
    here = world(recorder.url, "priority", slots=1, slice_tokens=1000)
    tools = [] if cut else [ToolSpec(name="f")]
    slow = here.start("slow", "batch", call=LlmChat(messages=[Message("user", "go")], tools=tools))
    here.until(lambda: any(update.delta for update in here.updates))
    urgent = here.start("urgent", "interactive", call=LlmChat(messages=[Message("user", "u")], tools=[]))
    first = here.hear(urgent)
    assert slow.ended is None or not cut
    assert any(update.preempted and update.generation is slow for update in here.updates)
    assert (first.text, here.hear(slow).text) == (words(0, 60), words(0, 60))
    assert len(recorder.bodies) == (3 if cut else 2)


# --- several servers ------------------------------------------------------------------------------------------------


def test_families_stay_at_a_server_and_new_ones_go_where_it_is_quiet(world: Callable[..., World]) -> None:
    first, second = Recorder(pace_s=0.01), Recorder(pace_s=0.01)
    try:
        here = world(f"{first.url}, {second.url}", slots=8, session_header="x-session-id")
        for _ in range(3):
            calls = [here.start(f"p{number}", root=f"top{number // 2}") for number in range(8)]
            for call in calls:
                here.hear(call)
        seen = [{headers["x-session-id"] for headers in server.headers} for server in (first, second)]
        assert seen[0] | seen[1] == {"top0", "top1", "top2", "top3"}
        assert not seen[0] & seen[1]
        assert (len(seen[0]), len(seen[1])) == (2, 2)
    finally:
        first.stop()
        second.stop()


def test_every_base_url_is_looked_at() -> None:
    with pytest.raises(ConfigError):
        openai_model("tiny", "http://127.0.0.1:1/v1, ftp://x")
    with pytest.raises(AiosError):
        openai_model("tiny", "http://127.0.0.1:1/v1")
