"""What every engine promises of a chat, over the whole road: torch, fake, both behind an HTTP server, and llama.cpp."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from aios_kernel.client import Client
from aios_kernel.config import Config, token_file_of
from aios_kernel.engine.load import DEMO
from aios_kernel.engine.settings import VllmSettings
from aios_kernel.errors import AiosError, DeadlineExceeded, InvalidRequest
from aios_kernel.kernel import Kernel
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import LlmChat, LlmDelta, LlmResult, Message, Sampling, ToolCall, ToolSpec

GREEDY = Sampling(temperature=0.0, max_tokens=60)
ADD = ToolSpec(
    name="add",
    description="Add two numbers.",
    parameters={
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": [1, 2]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "old": {"type": "boolean"}},
    "required": ["city", "old"],
    "additionalProperties": False,
}
LONG = LlmChat(  # the fake model ponders without end; others have a long text to write
    messages=[Message("user", "ponder")],
    schema={"type": "string", "minLength": 3000},
    sampling=Sampling(temperature=0.0),
    stream=True,
)


def chat(text: str, **options: Any) -> LlmChat:
    return LlmChat(messages=[Message("user", text)], **({"sampling": GREEDY} | options))


@dataclass(slots=True)
class Road:
    """A client of a kernel, all kernels on the way, and the kernel that really has the model."""

    client: Client
    kernels: list[Kernel]
    direct: Client

    def ask(self, call: LlmChat) -> LlmResult:
        answer = self.client.call(call)
        assert isinstance(answer, LlmResult)
        return answer

    def is_quiet(self) -> bool:
        """Whether nothing is open, nor holds blocks, on any kernel."""
        return all(
            not any(kernel.agents.open_calls.values())
            and kernel.model.engine.kv_free() == kernel.model.engine.capabilities.kv_tokens
            for kernel in self.kernels
        )


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.01)


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "demo",
        "openai:fake",
        "openai:demo",
        "llamacpp",
        "vllm-inprocess",
        pytest.param("vllm", marks=pytest.mark.slow),
    ],
)
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Road, None, None]:
    *remote, model = request.param.split(":")
    if model == "llamacpp":
        model = f"llamacpp:{request.getfixturevalue('gguf')('demo', 'q8_0')}"
    common: dict[str, Any] = {"kernel": "inprocess", "embedder": "hash", "vectors": "exact", "device": "cpu"}
    if model == "vllm-inprocess":
        pytest.importorskip("vllm", reason="needs vLLM in the kernel's environment: make test-vllm")
        model, common["vllm"] = f"vllm-inprocess:{DEMO}", VllmSettings(args=["--enforce-eager"])
    if model == "vllm":
        model, common["vllm"] = f"vllm:{DEMO}", request.getfixturevalue("vllm_settings")
    # fifo keeps nothing of an ended call, so that what an engine holds in the end is what it lost.
    common["policy"] = "fifo"
    home = tmp_path_factory.mktemp("kernel")
    config = Config(home=str(home), model=model, http="127.0.0.1:0", kv_tokens=8192, **common)
    running = [InProcessKernel(config)]
    if remote:
        assert running[0].kernel is not None
        base_url, key = f"{running[0].kernel.http_url}/v1", token_file_of(config).read_text()
        front = tmp_path_factory.mktemp("front")
        running.append(
            InProcessKernel(Config(home=str(front), model=request.param, base_url=base_url, api_key=key, **common))
        )
    connections = [kernel.connect("contract") for kernel in running]
    kernels = [kernel.kernel for kernel in running if kernel.kernel is not None]
    yield Road(Client(connections[-1]), kernels, Client(connections[0]))
    for connection, kernel in zip(reversed(connections), reversed(running), strict=True):
        connection.close()
        kernel.stop()


@pytest.fixture(autouse=True)
def _nothing_is_left(road: Road) -> Generator[None, None, None]:
    yield
    until(road.is_quiet)


def test_an_answer(road: Road) -> None:
    result = road.ask(chat("say hello there"))
    assert result.text
    assert result.model == road.kernels[-1].model.name
    assert result.finish_reason in {"stop", "length"}
    assert 0 < result.usage.completion_tokens <= 60
    assert result.usage.prompt_tokens > 0
    # The road between adds nothing and takes nothing away.
    direct = road.direct.call(chat("say hello there"))
    assert isinstance(direct, LlmResult)
    assert (result.text, result.finish_reason) == (direct.text, direct.finish_reason)
    assert result.usage.prompt_tokens == direct.usage.prompt_tokens
    assert result.usage.completion_tokens == direct.usage.completion_tokens


@pytest.mark.parametrize("tools", [[], [ADD]])
def test_a_stream_adds_up_to_the_answer(road: Road, tools: list[ToolSpec]) -> None:
    call = chat('call add {"a": 7, "b": 2}' if tools else "think 30", tools=tools, stream=True)
    text, calls = "", list[ToolCall]()
    stream = road.client.stream(call)
    *deltas, result = stream
    assert isinstance(result, LlmResult)
    for delta in deltas:
        assert isinstance(delta, LlmDelta)
        text += delta.text
        calls += delta.tool_calls
    assert (text, calls) == (result.text, result.tool_calls)
    assert deltas


def test_the_token_limit(road: Road) -> None:
    result = road.ask(chat("think 50", sampling=Sampling(temperature=0.0, max_tokens=3)))
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 3)


def test_stop_strings(road: Road) -> None:
    whole = road.ask(chat("think 20")).text
    stop = whole[3:6]
    cut = road.ask(chat("think 20", sampling=Sampling(temperature=0.0, max_tokens=60, stop=[stop])))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_tool_calls_are_parsed(road: Road) -> None:
    if road.kernels[-1].model.engine.name == "vllm":
        pytest.skip("vLLM holds required calls to a format of its own, in which the demo model finds no end")
    result = road.ask(chat('call add {"a": 7, "b": 2}', tools=[ADD], tool_choice="required"))
    assert result.finish_reason == "tool_calls"
    assert len({call.id for call in result.tool_calls}) == len(result.tool_calls) >= 1
    for call in result.tool_calls:
        assert call.name == "add"
        jsonschema.validate(json.loads(call.arguments), ADD.parameters)


def test_a_tools_result_comes_back(road: Road) -> None:
    asked = ToolCall(id="call_1", name="add", arguments='{"a": 7, "b": 2}')
    messages = [
        Message("user", "add them"),
        Message("assistant", tool_calls=[asked]),
        Message("tool", "9", tool_call_id="call_1", name="add"),
    ]
    call = LlmChat(messages=messages, tools=[ADD], sampling=GREEDY)
    direct = road.direct.call(call)
    assert isinstance(direct, LlmResult)
    assert road.ask(call).text == direct.text


def test_schemas_bind(road: Road) -> None:
    answer = json.loads(road.ask(chat("which city", schema=SCHEMA)).text)
    jsonschema.validate(answer, SCHEMA)


def test_cancelling_ends_it_everywhere(road: Road) -> None:
    stream = road.client.stream(LONG)
    assert isinstance(next(iter(stream)), LlmDelta)
    assert not road.is_quiet()
    stream.close()
    until(road.is_quiet)


def test_a_deadline_ends_it_everywhere(road: Road) -> None:
    with pytest.raises(DeadlineExceeded):
        road.client.call(LONG, timeout_s=0.2)
    until(road.is_quiet)


def test_what_cannot_be_asked_is_told(road: Road) -> None:
    for call in (LlmChat(messages=[]), chat("hello", tool_choice="required"), chat("x", sampling=Sampling(top_p=2.0))):
        with pytest.raises(InvalidRequest):
            road.client.call(call)


def test_many_at_once_get_their_own_answers(road: Road) -> None:
    calls = [chat(f"say number {number}", sampling=Sampling(temperature=0.0, max_tokens=12)) for number in range(12)]
    expected = [road.ask(call).text for call in calls]
    answers: list[str | AiosError] = [""] * len(calls)

    def ask(number: int) -> None:
        try:
            answers[number] = road.ask(calls[number]).text
        except AiosError as error:
            answers[number] = error

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected
