"""Errors of the kernel reach the agent as the SDK's own exceptions, with our text."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel.syscalls import KernelKill


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@aios.agent(name="asker")
def ask(text: str, client: OpenAI | None = None, **options: Any) -> Any:
    return (client or OpenAI()).chat.completions.create(model="m", messages=user(text), **options)


@aios.agent(name="asker")
async def aask(text: str, **options: Any) -> Any:
    return await AsyncOpenAI().chat.completions.create(model="m", messages=user(text), **options)


@pytest.mark.usefixtures("fake_kernel")
async def test_a_field_that_is_not_served() -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask("hi", modalities=["audio"])
    assert caught.value.message == "modalities = ['audio'] is not supported here\n  fix: leave it out of the request"
    assert (caught.value.code, caught.value.type, caught.value.status_code) == (
        "unsupported", "invalid_request_error", 400
    )  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        await aask("hi", frequency_penalty=3.0, stream=True)


@pytest.mark.usefixtures("fake_kernel")
def test_a_body_that_is_no_json() -> None:
    @aios.agent(name="careless")
    def agent() -> None:
        OpenAI().post("/chat/completions", cast_to=object, content=b"{")

    with pytest.raises(openai.BadRequestError, match="no JSON"):
        agent()


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(fake_kernel: KernelHandle, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask("word " * 70_000, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert 'agent "asker" called llm.chat' in caught.value.message
    assert [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"] == ["context_too_long"]


def test_an_explicit_timeout_is_the_deadline(fake_kernel: KernelHandle) -> None:
    with pytest.raises(openai.APITimeoutError) as caught:
        ask("ponder", timeout=0.05)
    assert "deadline of 0.05 s" in str(caught.value)
    with pytest.raises(openai.APITimeoutError):
        ask("ponder", client=OpenAI(timeout=0.05))
    with pytest.raises(openai.APITimeoutError):
        list(ask("ponder", timeout=0.2, stream=True))
    outcomes = [span.outcome for span in fake_kernel.spans() if span.syscall == "llm.chat"]
    assert outcomes == ["deadline_exceeded"] * 3, "each was tried once"


@pytest.mark.usefixtures("fake_kernel")
async def test_an_explicit_timeout_async() -> None:
    with pytest.raises(openai.APITimeoutError):
        await aask("ponder", timeout=0.05)
    with pytest.raises(openai.APITimeoutError):
        async for _ in await aask("ponder", timeout=0.2, stream=True):
            pass


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes one call at a time."""
    monkeypatch.setenv("AIOS_MAX_OPEN_CALLS", "1")


@pytest.mark.usefixtures("narrow", "fake_kernel")
def test_a_full_queue_is_a_rate_limit() -> None:
    @aios.agent(name="greedy")
    def agent() -> None:
        client = OpenAI(max_retries=0)
        with client.chat.completions.create(model="m", messages=user("ponder"), stream=True):
            client.chat.completions.create(model="m", messages=user("hi"))

    with pytest.raises(openai.RateLimitError, match="syscalls are open") as caught:
        agent()
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.usefixtures("narrow", "fake_kernel")
def test_a_full_queue_is_tried_again_when_the_kernel_says() -> None:
    @aios.agent(name="patient")
    def agent() -> Any:
        client = OpenAI(max_retries=2)
        stream = client.chat.completions.create(model="m", messages=user("ponder"), stream=True)
        threading.Timer(0.2, stream.close).start()
        return client.chat.completions.create(model="m", messages=user("say at last"))

    assert agent().choices[0].message.content == "at last"


def test_a_killed_agent(fake_kernel: KernelHandle) -> None:
    stream = iter(ask("ponder", stream=True))
    next(stream)
    fake_kernel.client.call(KernelKill(target="asker"))
    with pytest.raises(openai.ConflictError) as caught:
        list(stream)
    assert caught.value.code == "cancelled"


def test_no_kernel_is_a_connection_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KERNEL", str(tmp_path / "none.sock"))
    with pytest.raises(openai.APIConnectionError) as caught:
        ask("hi")
    assert "fix: aios serve" in str(caught.value)
