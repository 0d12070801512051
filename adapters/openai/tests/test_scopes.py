"""Who is served, and that closing stops the model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

import aios_adapters as aios
from aios_adapters import host
from aios_adapters.testing import KernelHandle


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def outcomes(kernel: KernelHandle) -> list[tuple[str, str]]:
    """Agent and outcome of every chat that has ended."""
    return [(span.agent, span.outcome) for span in kernel.spans() if span.syscall == "llm.chat"]


async def test_agents_keep_their_names_under_gather_and_in_threads(fake_kernel: KernelHandle) -> None:
    client, aclient = OpenAI(), AsyncOpenAI()

    def named(name: str) -> Any:
        @aios.agent(name=name)
        async def agent() -> str:
            answer = await aclient.chat.completions.create(model="m", messages=user(f"say {name}"))
            return answer.choices[0].message.content or ""

        return agent()

    def in_thread(name: str) -> None:
        @aios.agent(name=name)
        def agent() -> None:
            client.chat.completions.create(model="m", messages=user(f"say {name}"))

        agent()

    threads = [threading.Thread(target=in_thread, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert await asyncio.gather(*(named(f"a{number}") for number in range(4))) == ["a0", "a1", "a2", "a3"]
    for thread in threads:
        await asyncio.to_thread(thread.join)
    rows = [(row.agent, row.framework, row.llm_calls) for row in fake_kernel.ps()]
    assert sorted(rows) == [(name, "openai", 1) for name in ("a0", "a1", "a2", "a3", "t0", "t1", "t2", "t3")]


async def test_outside_a_scope_nothing_is_rerouted(fake_kernel: KernelHandle) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json={"object": "list", "data": []})

    transport = httpx.MockTransport(answer)
    client = OpenAI(api_key="sk-x", http_client=httpx.Client(transport=transport))
    aclient = AsyncOpenAI(api_key="sk-x", http_client=httpx.AsyncClient(transport=transport))

    @aios.agent(name="inside")
    def inside() -> list[str]:
        return [model.id for model in client.models.list()]

    assert inside() == ["fake"]
    assert seen == []
    assert list(client.models.list()) == []
    assert [model async for model in await aclient.models.list()] == []
    assert seen == ["/v1/models"] * 2
    assert {row.agent for row in fake_kernel.ps()} == {"inside"}


def test_undone_nothing_is_rerouted_inside_either() -> None:
    host().deactivate()
    try:
        assert not hasattr(OpenAI.request, "__aios_original__")
        assert not hasattr(AsyncOpenAI.request, "__aios_original__")
    finally:
        host().activate()
    assert hasattr(OpenAI.request, "__aios_original__")


def test_closing_a_stream_stops_the_model(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="closer")
    def agent() -> None:
        stream = OpenAI().chat.completions.create(model="m", messages=user("ponder"), stream=True)
        next(stream)
        stream.close()

    agent()
    assert fake_kernel.wait_for(lambda: outcomes(fake_kernel) == [("closer", "cancelled")])


def test_leaving_a_with_block_stops_the_model(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="leaver")
    def agent() -> None:
        with OpenAI().responses.create(model="m", input="ponder", stream=True) as stream:
            for _ in stream:
                break

    agent()
    assert fake_kernel.wait_for(lambda: outcomes(fake_kernel) == [("leaver", "cancelled")])


def test_a_forgotten_stream_frees_its_program(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="forgetful")
    def agent() -> None:
        OpenAI().chat.completions.create(model="m", messages=user("ponder"), stream=True)

    agent()
    assert fake_kernel.wait_for(lambda: [row.state for row in fake_kernel.ps()] == ["finished"])
    assert outcomes(fake_kernel) == [("forgetful", "cancelled")]


async def test_closing_an_async_stream_stops_the_model(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="closer")
    async def agent() -> None:
        async with await AsyncOpenAI().chat.completions.create(
            model="m", messages=user("ponder"), stream=True
        ) as stream:
            async for _ in stream:
                break

    await agent()
    assert await asyncio.to_thread(fake_kernel.wait_for, lambda: outcomes(fake_kernel) == [("closer", "cancelled")])


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_a_task_stops_the_model(fake_kernel: KernelHandle, stream: bool) -> None:
    @aios.agent(name="cancelled")
    async def agent() -> None:
        answer = await AsyncOpenAI().chat.completions.create(model="m", messages=user("ponder"), stream=stream)
        if stream:
            async for _ in answer:
                pass

    task = asyncio.create_task(agent())
    await asyncio.to_thread(fake_kernel.wait_for, lambda: any(row.state == "running" for row in fake_kernel.ps()))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(fake_kernel.wait_for, lambda: outcomes(fake_kernel) == [("cancelled", "cancelled")])
    assert fake_kernel.ps()[0].completion_tokens < 60000
