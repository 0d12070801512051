"""The openai engine against a server that does as it is told, for all that can go wrong there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from aios_kernel import errors
from aios_kernel.chat.generation import Generation
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.openai import openai_model
from aios_kernel.engine.openai.server import Patience
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.process import Program
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling, ToolCall, ToolSpec, Usage

Answer = Callable[[BaseHTTPRequestHandler], None]
IMPATIENT = Patience(connect_s=2.0, silence_s=0.8)


class Server:
    """An HTTP server whose answer to a chat is a function."""

    def __init__(self) -> None:
        self.answer: Answer = stream(chunk("hi"), chunk(finish_reason="stop"))
        self.models: Any = {"data": [{"id": "tiny"}]}
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.open = 0
        self.most_open = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.keys.append(self.headers["authorization"])
                status(200 if isinstance(server.models, dict) else server.models, json.dumps(server.models))(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with server._lock:
                    server.asked.append(json.loads(body))
                    server.open += 1
                    server.most_open = max(server.most_open, server.open)
                try:
                    server.answer(self)
                except OSError:
                    pass  # the client has gone
                finally:
                    with server._lock:
                        server.open -= 1

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def chunk(content: str | None = None, **fields: Any) -> str:
    finish = fields.pop("finish_reason", None)
    delta = fields.pop("delta", {} if content is None else {"content": content})
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields})


def status(code: int, body: str, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return answer


def stream(*events: str | float, end: str = "[DONE]") -> Answer:
    """Events of a stream; a number is a pause in seconds."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(b": a comment\n\n")
        for event in (*events, end):
            if isinstance(event, float):
                time.sleep(event)
            elif event:
                handler.wfile.write(f"data: {event}\n\n".encode())

    return answer


@pytest.fixture
def server() -> Generator[Server, None, None]:
    made = Server()
    yield made
    made.stop()


class Bench:
    """A dispatcher on the model of a server."""

    def __init__(self, server: Server, **options: Any) -> None:
        self.model: LoadedModel = openai_model("tiny", server.url, patience=IMPATIENT, **options)
        self._service = ChatService(self.model, Config())
        self._changed = threading.Condition()
        self._updates: list[Update] = []
        self.dispatcher = Dispatcher(self.model, Fifo({}), self._deliver)
        self.dispatcher.start()

    def start(self, call: LlmChat | None = None) -> Generation:
        (generation,) = self.start_all(call or LlmChat(messages=[Message("user", "hello")]))
        return generation

    def start_all(self, call: LlmChat) -> list[Generation]:
        program = Program(id="p", agent="a", principal="me", group="g")
        generations = self._service.prepare_all(self.dispatcher.next_id, call, program)
        for generation in generations:
            self.dispatcher.submit(generation)
        return generations

    def wait(self, generation: Generation, *, shown: bool = False) -> list[Update]:
        """The updates of a generation up to its end, or with `shown` to its first text."""

        def mine() -> list[Update]:
            return [update for update in self._updates if update.generation is generation]

        with self._changed:
            assert self._changed.wait_for(
                lambda: any(update.ended or (shown and update.delta) for update in mine()), timeout=10
            )
            return mine()

    def ask(self, call: LlmChat | None = None) -> LlmResult:
        generation = self.start(call)
        self.wait(generation)
        if isinstance(generation.ended, errors.AiosError):
            raise generation.ended
        assert generation.ended is not None
        return generation.ended

    def _deliver(self, updates: list[Update]) -> None:
        with self._changed:
            self._updates += updates
            self._changed.notify_all()


@pytest.fixture
def make(server: Server) -> Generator[Callable[..., Bench], None, None]:
    benches: list[Bench] = []

    def build(**options: Any) -> Bench:
        benches.append(Bench(server, **options))
        return benches[-1]

    yield build
    for bench in benches:
        bench.dispatcher.stop()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


def test_the_request_says_what_was_asked_and_nothing_else(server: Server, bench: Bench) -> None:
    bench.ask(LlmChat(messages=[Message("system", "be kind"), Message("user", "hello")]))
    tool = ToolSpec(name="add", description="Adds.", parameters={"type": "object"})
    calls = [ToolCall(id="c1", name="add", arguments="{}")]
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=4, seed=3, max_tokens=9, stop=["x"], logit_bias={7: 1.0})
    messages = [Message("assistant", tool_calls=calls), Message("tool", "4", tool_call_id="c1", name="add")]
    bench.ask(LlmChat(messages=messages, tools=[tool], tool_choice="add", sampling=sampling, parallel_tool_calls=False))
    bench.ask(LlmChat(messages=messages[1:], schema={"type": "array"}))
    bench.ask(LlmChat(messages=messages[1:], schema={}))
    plain, rich, schema, any_object = server.asked
    assert plain == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    expected = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3, "max_tokens": 9, "stop": ["x"],
        "logit_bias": {"7": 1.0},
    }  # fmt: skip
    assert {name: rich.get(name) for name in expected} == expected
    spelled = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert rich["messages"] == [
        {"role": "assistant", "content": "", "tool_calls": [spelled]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    assert schema["response_format"]["json_schema"]["schema"] == {"type": "array"}
    assert any_object["response_format"] == {"type": "json_object"}


def test_several_answers_have_seeds_of_their_own(server: Server, bench: Bench) -> None:
    for generation in bench.start_all(LlmChat(messages=[Message("user", "hello")], sampling=Sampling(seed=5, n=3))):
        bench.wait(generation)
        assert isinstance(generation.ended, LlmResult)
    assert sorted(asked["seed"] for asked in server.asked) == [5, 6, 7]
    assert all("n" not in asked for asked in server.asked)


def test_an_answer_in_pieces(server: Server, bench: Bench) -> None:
    def part(index: int, **fields: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **fields}]}

    server.answer = stream(
        chunk(delta={"role": "assistant", "content": ""}),
        chunk("héllo "),
        0.05,
        chunk("there"),
        chunk(delta=part(0, id="a", type="function", function={"name": "add", "arguments": ""})),
        chunk(delta=part(0, function={"arguments": '{"x":'})),
        chunk(delta=part(1, id="b", function={"name": "sub", "arguments": "{}"})),
        chunk(delta=part(0, function={"arguments": " 1}"})),
        chunk(finish_reason="tool_calls"),
        json.dumps(
            {
                "choices": [],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
            }
        ),
    )
    generation = bench.start()
    updates = bench.wait(generation)
    result = generation.ended
    assert isinstance(result, LlmResult)
    assert result.text == "héllo there"
    assert result.tool_calls == [ToolCall("a", "add", '{"x": 1}'), ToolCall("b", "sub", "{}")]
    assert result.finish_reason == "tool_calls"
    assert result.usage == Usage(prompt_tokens=7, cached_tokens=4, completion_tokens=5)
    assert len([update for update in updates if update.delta]) >= 2  # it did stream
    assert bench.model.engine.kv_free() == bench.model.engine.capabilities.kv_tokens


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("length", "length"), ("content_filter", "stop"), ("function_call", "stop")]
)
def test_reasons_to_end(server: Server, bench: Bench, reason: str, told: str) -> None:
    server.answer = stream(chunk("a"), chunk(finish_reason=reason), end="")  # some send no end mark
    assert bench.ask().finish_reason == told


ERROR = json.dumps({"error": {"message": "because", "code": "some"}})
TOO_LONG = json.dumps({"error": {"message": "because", "code": "context_length_exceeded"}})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(400, ERROR), errors.InvalidRequest),
        (status(400, TOO_LONG), errors.ContextTooLong),
        (status(401, '{"detail": "because"}'), errors.EngineError),
        (status(404, '{"message": "because"}'), errors.UnknownModel),
        (status(429, ERROR, retry_after="7"), errors.Busy),
        (status(500, "because <of>"), errors.EngineUnavailable),
        (status(503, ERROR, retry_after="7"), errors.EngineUnavailable),
        (status(302, "because"), errors.EngineError),
        (stream(chunk("a"), ERROR), errors.EngineError),
        (stream(chunk("a"), end=""), errors.EngineUnavailable),
        (stream(chunk("a"), chunk(finish_reason="abort")), errors.EngineUnavailable),
        (stream(chunk("a"), "{"), errors.EngineError),
        (stream(chunk("a"), "[]"), errors.EngineError),
        (stream(chunk("a"), '{"choices": [4]}'), errors.EngineError),
        (stream(chunk("a"), 1.0), errors.EngineUnavailable),
    ],
)  # fmt: skip
def test_errors_are_typed(server: Server, bench: Bench, answer: Answer, kind: type[errors.AiosError]) -> None:
    server.answer = answer
    with pytest.raises(errors.AiosError) as caught:
        bench.ask()
    assert type(caught.value) is kind
    if answer.__qualname__.startswith("status"):
        assert "because" in str(caught.value)
    if kind is errors.Busy:
        assert caught.value.retry_after_s == 7
    server.answer = stream(chunk("fine"), chunk(finish_reason="stop"))
    assert bench.ask().text == "fine"  # the others, and the next, are not concerned
    assert bench.model.engine.kv_free() == bench.model.engine.capabilities.kv_tokens


def said(message: str, **fields: Any) -> str:
    return json.dumps({"error": {"message": message, **fields}})


LLAMA = said("the request exceeds the available context size", code=400, type="exceed_context_size_error", n_ctx=256)

VLLM = said("This model's maximum context length is 64 tokens.", type="BadRequestError", code=400)
SGLANG = json.dumps({"object": "error", "message": "The input (9 tokens) is longer than the model's context length"})
OLLAMA = said('model "x" not found, try pulling it first', type="not_found_error")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (status(400, LLAMA), errors.ContextTooLong),  # llama-server ...
        (status(500, LLAMA), errors.ContextTooLong),  # ... and an older one
        (status(503, said("Loading model", code=503, type="unavailable_error")), errors.EngineUnavailable),
        (stream(LLAMA), errors.ContextTooLong),
        (status(400, VLLM), errors.ContextTooLong),
        (status(400, SGLANG), errors.ContextTooLong),
        (status(404, OLLAMA), errors.UnknownModel),
    ],
)  # fmt: skip
def test_errors_as_several_servers_spell_them(
    server: Server, bench: Bench, answer: Answer, kind: type[errors.AiosError]
) -> None:
    server.answer = answer
    with pytest.raises(errors.AiosError) as caught:
        bench.ask()
    assert type(caught.value) is kind


def test_an_error_event_of_llama_server(server: Server, bench: Bench) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        handler.wfile.write(b'error: {"code": 500, "message": "because", "type": "server_error"}\n\n')

    server.answer = answer
    with pytest.raises(errors.EngineError, match="because"):
        bench.ask()


def test_an_answer_as_llama_server_sends_it(server: Server, bench: Bench) -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    server.answer = stream(
        chunk(delta={"role": "assistant", "content": None}),
        chunk(delta={"reasoning_content": "hm"}),
        chunk("yes", system_fingerprint="b6000"),
        chunk(finish_reason="stop"),
        json.dumps({"choices": [], "usage": usage, "timings": {"cache_n": 8, "prompt_n": 1, "predicted_ms": 1.0}}),
    )
    result = bench.ask()
    assert (result.text, result.finish_reason) == ("yes", "stop")
    assert result.usage == Usage(prompt_tokens=9, cached_tokens=8, completion_tokens=2)


def test_an_answer_as_sglang_sends_it(server: Server, bench: Bench) -> None:
    nothing = {"reasoning_content": None, "tool_calls": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None, "reasoning_tokens": 0}
    server.answer = stream(
        chunk(delta={"role": "assistant", "content": "", **nothing}, usage=None),
        chunk(delta={"role": None, "content": "yes", **nothing}, usage=None),
        json.dumps({"choices": [{"index": 0, "delta": nothing, "finish_reason": "stop", "matched_stop": 151645}]}),
        json.dumps({"choices": [], "usage": usage}),
    )
    result = bench.ask()
    assert (result.text, result.usage) == ("yes", Usage(prompt_tokens=9, completion_tokens=2))


def test_tool_calls_as_ollama_and_vllm_send_them(server: Server, bench: Bench) -> None:
    def whole(number: str, name: str, **fields: Any) -> dict[str, Any]:
        return {"id": number, "index": 0, "type": "function", "function": {"name": name, "arguments": "{}"}, **fields}

    call = LlmChat(messages=[Message("user", "go")], tools=[ToolSpec(name="add"), ToolSpec(name="sub")])
    server.answer = stream(  # Ollama: all of them have index 0
        chunk(delta={"role": "assistant", "content": "", "tool_calls": [whole("call_a", "add")]}),
        chunk(delta={"role": "assistant", "content": "", "tool_calls": [whole("call_b", "sub")]}),
        chunk(delta={"role": "assistant", "content": ""}, finish_reason="tool_calls"),
    )
    expected = [ToolCall("call_a", "add", "{}"), ToolCall("call_b", "sub", "{}")]
    assert bench.ask(call).tool_calls == expected
    part = {"index": 0, "function": {"arguments": "{}"}}
    server.answer = stream(  # vLLM: arguments in parts, which may have ids of their own
        chunk(delta={"tool_calls": [{"id": "call_a", "index": 0, "type": "function", "function": {"name": "add"}}]}),
        chunk(delta={"tool_calls": [part | {"id": "other"}]}),
        chunk(delta={"tool_calls": [whole("call_b", "sub", index=1)]}),
        chunk(finish_reason="tool_calls"),
    )
    assert bench.ask(call).tool_calls == expected


def test_what_came_before_an_error_is_shown(server: Server, bench: Bench) -> None:
    server.answer = stream(chunk("begun"), 0.1, ERROR)
    generation = bench.start()
    updates = bench.wait(generation)
    assert [update.delta.text for update in updates if update.delta] == ["begun"]
    assert isinstance(generation.ended, errors.EngineError)


def test_a_server_that_goes_away(server: Server, bench: Bench) -> None:
    server.stop()
    with pytest.raises(errors.EngineUnavailable, match="no model server answers"):
        bench.ask()


def test_cancelling_closes_the_request(server: Server, bench: Bench) -> None:
    closed = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        try:
            stream(*[event for _ in range(1000) for event in (chunk("on "), 0.01)])(handler)
        except OSError:
            closed.set()

    server.answer = endless
    generation = bench.start()
    bench.wait(generation, shown=True)
    bench.dispatcher.cancel(generation, errors.Cancelled("enough"))
    bench.wait(generation)
    assert isinstance(generation.ended, errors.Cancelled)
    assert closed.wait(10)


def test_no_more_calls_are_open_than_slots(server: Server, make: Callable[..., Bench]) -> None:
    gate = threading.Event()
    answer = stream(chunk("a"), chunk(finish_reason="stop"))

    def answer_later(handler: BaseHTTPRequestHandler) -> None:
        assert gate.wait(timeout=30)
        answer(handler)

    server.answer = answer_later
    bench = make(slots=3)
    generations = [bench.start() for _ in range(10)]
    until = time.monotonic() + 30
    while server.open < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.2)  # a fourth would come
    assert server.most_open == 3
    gate.set()
    for generation in generations:
        bench.wait(generation)
        assert isinstance(generation.ended, LlmResult)


def test_a_shutdown_leaves_nothing_open(server: Server, bench: Bench) -> None:
    server.answer = stream(chunk("a"), 5.0)
    generation = bench.start()
    bench.wait(generation, shown=True)
    began = time.monotonic()
    bench.dispatcher.stop()
    assert time.monotonic() - began < 2
    assert isinstance(generation.ended, errors.Cancelled)
    assert not any(thread.name == "aios-openai" for thread in threading.enumerate())


def test_tokens_of_other_engines_are_refused(bench: Bench) -> None:
    engine, codec = bench.model.engine, bench.model.codec
    with pytest.raises(ValueError, match="not tokens"):
        engine.open([1, 2], sampling=SamplingParams())
    with pytest.raises(ValueError, match="not of the openai engine"):
        codec.stream(LlmChat(messages=[])).push(3)
    with pytest.raises(errors.Unsupported, match="torch engine"):
        engine.embed([[1]])


@pytest.mark.parametrize("asked", [{"logprobs": True}, {"forced": "so"}, {"prompt_logprobs": 1}])
def test_what_such_servers_cannot_do_is_told(bench: Bench, asked: dict[str, Any]) -> None:
    with pytest.raises(errors.Unsupported):
        bench.ask(LlmChat(messages=[Message("user", "hello")], sampling=Sampling(**asked)))


def test_loading(server: Server) -> None:
    model = openai_model("", server.url + "/", api_key="secret")
    assert model.name == "tiny"
    assert server.keys == ["Bearer secret"]
    assert "secret" not in repr(model.engine.fingerprint)
    model.engine.close()
    server.models = 404  # it has no list
    model = openai_model("any", server.url)
    assert model.name == "any"
    model.engine.close()
    with pytest.raises(errors.UnknownModel, match="no list"):
        openai_model("", server.url)


def test_loading_what_is_not_there(server: Server) -> None:
    server.models = {"data": [{"id": "one"}, {"id": "two"}]}
    with pytest.raises(errors.UnknownModel, match="one, two"):
        openai_model("", server.url)
    server.models = 401
    with pytest.raises(errors.EngineError, match="401") as caught:
        openai_model("one", server.url)
    assert "AIOS_API_KEY" in str(caught.value)
    server.models = {"something": "else"}
    with pytest.raises(errors.EngineError, match="no OpenAI-compatible server"):
        openai_model("one", server.url)
    with pytest.raises(errors.ConfigError, match="base_url"):
        openai_model("one", "")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(errors.EngineUnavailable, match="no model server"):
            openai_model("one", f"http://127.0.0.1:{unused.getsockname()[1]}/v1")
        unused.listen()  # from here on it accepts and says nothing
        with pytest.raises(errors.EngineUnavailable, match="silent"):
            openai_model("one", f"http://127.0.0.1:{unused.getsockname()[1]}/v1", patience=IMPATIENT)
    assert not any(thread.name == "aios-openai" for thread in threading.enumerate())


def test_an_adapter_is_a_model_of_the_server(make: Callable[..., Bench], server: Server) -> None:
    bench = make(loras={"french": "tiny-french"})
    hello = [Message("user", "hello")]
    for call in (
        LlmChat(messages=hello),
        LlmChat(messages=hello, lora="french"),
        LlmChat(messages=hello, model="french"),
    ):
        assert bench.ask(call).text == "hi"
    assert [asked["model"] for asked in server.asked] == ["tiny", "tiny-french", "tiny-french"]
    engine: Any = bench.model.engine
    engine.load_lora("french", "tiny-french")  # as the kernel does for all that are configured
    assert dict(engine.loras()) == {"french": 0}
    with pytest.raises(errors.UnknownModel, match="german"):
        bench.ask(LlmChat(messages=hello, lora="german"))
    with pytest.raises(errors.Unsupported):
        engine.load_lora("german", "tiny-german")
    with pytest.raises(errors.Unsupported):
        engine.unload_lora("french")


def test_without_adapters_there_is_no_lora(make: Callable[..., Bench], server: Server) -> None:
    bench = make()
    assert not bench.model.engine.capabilities.lora
    with pytest.raises(errors.AiosError, match=r"LoRA|adapter"):
        bench.ask(LlmChat(messages=[Message("user", "hello")], lora="french"))
    assert server.asked == []
