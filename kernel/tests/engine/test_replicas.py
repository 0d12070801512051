"""Several servers of one model: placement, and what happens to the calls of one that dies, hangs or comes back."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aios_kernel.chat.generation import Generation
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.openai import openai_model
from aios_kernel.engine.openai.engine import OpenAIEngine
from aios_kernel.engine.openai.health import Watch
from aios_kernel.errors import AiosError, EngineUnavailable
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.scheduler.protocol import ProgramEnded
from aios_kernel.scheduler.settings import ServerHints
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Replica, Sampling, ToolSpec

QUICK = Watch(every_s=0.05, timeout_s=0.2, misses=2, soonest_s=0.02, longest_s=0.05)
WORDS = 20


class Server:
    """Answers with its words w0 w1 ..., going on from a prefix; can be killed, hung and started again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pace_s = 0.0
        self.status = 200  # of answers to chats
        self.asked: list[dict[str, Any]] = []
        self.awake = threading.Event()
        self.awake.set()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self.start()

    def start(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def setup(self) -> None:
                server._connections.add(self.request)
                super().setup()

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # killed
                    super().handle()

            def do_GET(self) -> None:
                server.awake.wait()
                self._whole(200, {"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body)
                server.awake.wait()
                if server.status != 200:
                    self._whole(server.status, {"error": {"message": "broken"}})
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for event in server.answer(body):
                    server.awake.wait()
                    data = f"data: {event}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.write(b"0\r\n\r\n")

            def _whole(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._http.daemon_threads = True
        self._port = self._http.server_port
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.005,))
        self._thread.start()

    def answer(self, body: dict[str, Any]) -> Iterator[str]:
        begun = len(body["messages"][-1]["content"].split()) if body.get("continue_final_message") else 0
        end = min(WORDS, begun + body.get("max_tokens", WORDS))
        for number in range(begun, end):
            yield json.dumps({"choices": [{"delta": {"content": f"w{number} "}}]})
            time.sleep(self.pace_s)
        yield json.dumps({"choices": [{"delta": {}, "finish_reason": "stop" if end == WORDS else "length"}]})
        yield json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": end - begun}})
        yield "[DONE]"

    def kill(self) -> None:
        """As SIGKILL: nothing listens any more, and every connection breaks."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()
        self.awake.set()


class World:
    """A dispatcher over servers."""

    def __init__(self, servers: list[Server], **hints: Any) -> None:
        urls = ",".join(server.url for server in servers)
        self.model = openai_model("tiny", urls, slots=32, hints=ServerHints(**hints), watch=QUICK)
        assert isinstance(self.model.engine, OpenAIEngine)
        self.engine = self.model.engine
        self._servers = {server.url: server for server in servers}
        self._service = ChatService(self.model, Config())
        self._changed = threading.Condition()
        self.updates: list[Update] = []
        self.dispatcher = Dispatcher(self.model, Fifo({}), self._deliver)
        self.dispatcher.start()

    def start(self, program: str, *, text: str = "go", root: str = "", agent: str = "a", **call: Any) -> Generation:
        order, owner = LlmChat(messages=[Message("user", text)], **call), Program(program, agent, "me", "g", root=root)
        generation = self._service.prepare(self.dispatcher.next_id(), order, owner)
        self.dispatcher.submit(generation)
        return generation

    def end(self, generation: Generation) -> LlmResult | AiosError:
        self.until(lambda: any(u.ended and u.generation is generation for u in self.updates))
        time.sleep(0.02)  # a second end would come now
        assert sum(u.ended and u.generation is generation for u in self.updates) == 1
        assert generation.ended is not None
        return generation.ended

    def ask(self, program: str, **options: Any) -> LlmResult:
        ended = self.end(self.start(program, **options))
        assert isinstance(ended, LlmResult), ended
        return ended

    def shown(self, generation: Generation) -> str:
        return "".join(u.delta.text for u in self.updates if u.generation is generation and u.delta)

    def home(self, family: str) -> Server:
        return self._servers[self.engine.homes()[family]]

    def replica(self, server: Server) -> Replica:
        return next(replica for replica in self.engine.replicas() if replica.url == server.url)

    def until(self, condition: Callable[[], bool]) -> None:
        ends_s = time.monotonic() + 20
        with self._changed:
            while not condition():
                assert time.monotonic() < ends_s
                self._changed.wait(0.01)

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self.updates += updates
            self._changed.notify_all()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made = [Server(name) for name in "abc"]
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def world(servers: list[Server]) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(number: int = 3, **hints: Any) -> World:
        made.append(World(servers[:number], **hints))
        return made[-1]

    yield make
    for each in made:
        each.dispatcher.stop()


WHOLE = "".join(f"w{number} " for number in range(WORDS))


def test_programs_stay_and_move_when_their_replica_dies(world: Callable[..., World], servers: list[Server]) -> None:
    here = world()
    programs = [f"p{number}" for number in range(6)]
    for program in programs * 3:
        assert here.ask(program).text == WHOLE
    homes = {program: here.home(program) for program in programs}
    assert sorted(server.name for server in homes.values()) == [*"aabbcc"]
    assert [len(server.asked) for server in servers] == [6, 6, 6]  # each at its own in every turn
    dead = homes["p0"]
    dead.kill()
    for program in programs * 2:
        assert here.ask(program).text == WHOLE  # nobody is told
    assert len(dead.asked) == 6
    for program in programs:
        assert here.home(program) is not dead
        assert homes[program] is dead or here.home(program) is homes[program]  # the others have not moved
    assert not here.replica(dead).up
    assert here.replica(dead).families == 0


def test_a_replica_is_taken_back_when_it_answers_again(world: Callable[..., World], servers: list[Server]) -> None:
    here = world(2)
    here.ask("old")
    dead = here.home("old")
    dead.kill()
    here.ask("old")
    here.until(lambda: not here.replica(dead).up)
    dead.start()
    here.until(lambda: here.replica(dead).up)
    here.ask("old")
    assert here.home("old") is not dead  # its KV is at the other one now
    here.ask("new")
    assert here.home("new") is dead  # the quieter one


@pytest.mark.parametrize("extra", [{}, {"tools": [ToolSpec(name="f")]}, {"sampling": Sampling(max_tokens=WORDS)}])
def test_an_answer_that_nobody_follows_is_given_anew(
    world: Callable[..., World], servers: list[Server], extra: dict[str, Any]
) -> None:
    for server in servers:
        server.pace_s = 0.02
    here = world()
    generation = here.start("p", **extra)
    here.until(lambda: generation.generated >= 3)
    dead = here.home("p")
    dead.kill()
    result = here.end(generation)
    assert isinstance(result, LlmResult)
    assert result.text == WHOLE
    assert result.usage.completion_tokens == WORDS  # as the one that gave it counts
    assert here.replica(dead).lost_calls == 1
    assert sum(len(server.asked) for server in servers) == 2


def test_an_answer_that_was_partly_shown_ends_with_an_error(world: Callable[..., World], servers: list[Server]) -> None:
    for server in servers:
        server.pace_s = 0.02
    here = world()
    generation = here.start("p", stream=True)
    here.until(lambda: len(here.shown(generation)) > 5)
    here.home("p").kill()
    error = here.end(generation)
    assert isinstance(error, EngineUnavailable)
    assert "part of the answer has been handed on" in error.message
    assert error.fix is not None
    assert "ask again" in error.fix
    assert WHOLE.startswith(here.shown(generation))
    assert sum(len(server.asked) for server in servers) == 1
    assert here.ask("p", stream=True).text == WHOLE


def test_a_stream_that_has_shown_nothing_moves(world: Callable[..., World], servers: list[Server]) -> None:
    here = world()
    here.ask("p")
    home = here.home("p")
    home.awake.clear()
    generation = here.start("p", stream=True)
    here.until(lambda: len(home.asked) == 2)
    home.kill()
    assert isinstance(here.end(generation), LlmResult)
    assert here.shown(generation) == WHOLE


def test_slices_go_on_elsewhere_from_what_was_shown(world: Callable[..., World], servers: list[Server]) -> None:
    for server in servers:
        server.pace_s = 0.02
    here = world(slice_tokens=100)
    generation = here.start("p", stream=True)
    here.until(lambda: len(here.shown(generation)) > 5)
    here.home("p").kill()
    assert isinstance(here.end(generation), LlmResult)
    assert here.shown(generation) == WHOLE
    (last,) = [server.asked[0] for server in servers if server.asked and server is here.home("p")]
    assert WHOLE.startswith(last["messages"][-1]["content"])
    assert last["continue_final_message"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_hangs_is_noticed(world: Callable[..., World], servers: list[Server], stream: bool) -> None:
    for server in servers:
        server.pace_s = 0.02
    here = world()
    generation = here.start("p", stream=stream)
    here.until(lambda: generation.generated >= 2)
    hung = here.home("p")
    hung.awake.clear()  # it takes connections and says nothing
    ended = here.end(generation)
    assert isinstance(ended, EngineUnavailable if stream else LlmResult)
    assert not here.replica(hung).up
    assert here.ask("p").text == WHOLE
    assert here.home("p") is not hung


def test_a_call_that_breaks_servers_is_not_passed_to_all(world: Callable[..., World], servers: list[Server]) -> None:
    servers.append(Server("d"))
    for server in servers:
        server.status = 500
    here = World(servers)
    try:
        error = here.end(here.start("p"))
        assert isinstance(error, EngineUnavailable)
        assert "broken" in error.message
        assert sum(len(server.asked) for server in servers) <= 3
    finally:
        here.dispatcher.stop()


def test_without_any_replica_calls_end_and_later_ones_work(world: Callable[..., World], servers: list[Server]) -> None:
    here = world(2)
    here.ask("p")
    for server in servers[:2]:
        server.kill()
    error = here.end(here.start("p"))
    assert isinstance(error, EngineUnavailable)
    assert "no other replica is up" in error.message
    assert error.retry_after_s == 1.0
    servers[1].start()
    here.until(lambda: here.replica(servers[1]).up)
    assert here.ask("p").text == WHOLE
    assert here.home("p") is servers[1]


def test_new_programs_go_where_contexts_are_small(world: Callable[..., World], servers: list[Server]) -> None:
    here = world(2)
    here.ask("long", text="word " * 20_000)
    for number in range(5):
        here.ask(f"p{number}")
    assert {here.home(f"p{number}").name for number in range(5)} == {"b"}
    here.ask("child", root="p0")  # families stay together
    assert "child" not in here.engine.homes()
    here.dispatcher.observe(ProgramEnded("long"))
    here.until(lambda: here.replica(servers[0]).families == 0)
    here.ask("new")
    assert here.home("new").name == "a"


def test_requests_that_name_nobody_stay_together_by_conversation(
    world: Callable[..., World], servers: list[Server]
) -> None:
    here = world(2)
    for _ in range(3):
        for number in range(6):
            here.ask("http-1", agent="http", text=f"question {number}")
    asked = [{body["messages"][0]["content"] for body in server.asked} for server in servers[:2]]
    assert [len(each) for each in asked] == [3, 3]
    assert not asked[0] & asked[1]
    here.dispatcher.observe(ProgramEnded("http-1"))
    here.until(lambda: not here.engine.homes())


def test_one_of_several_may_be_down_at_the_start(world: Callable[..., World], servers: list[Server]) -> None:
    servers[0].kill()
    here = world(2)
    assert [here.ask(f"p{number}").text for number in range(3)] == [WHOLE] * 3
    here.until(lambda: not here.replica(servers[0]).up)
    servers[1].kill()
    with pytest.raises(EngineUnavailable, match="no model server answers"):
        openai_model("tiny", f"{servers[0].url},{servers[1].url}")


def test_a_lone_server_has_no_replicas(world: Callable[..., World]) -> None:
    here = world(1)
    here.ask("p")
    assert (here.engine.homes(), here.engine.replicas()) == ({}, ())
