"""Embeddings, models, and what the kernel does not serve."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

import aios_adapters as aios
from aios_kernel.errors import Unsupported

pytestmark = pytest.mark.usefixtures("fake_kernel")


@aios.agent(name="caller")
def call(work: Callable[[OpenAI], Any]) -> Any:
    return work(OpenAI())


@aios.agent(name="caller")
async def acall(work: Callable[[AsyncOpenAI], Any]) -> Any:
    return await work(AsyncOpenAI())


async def test_embeddings() -> None:
    by_base64 = call(lambda client: client.embeddings.create(model="e", input=["a", "b"]))
    by_float = await acall(
        lambda client: client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    )
    assert len(by_base64.data) == 2
    assert by_base64.data[0].embedding == pytest.approx(by_float.data[0].embedding, abs=1e-6)
    assert by_base64.data[0].embedding != by_base64.data[1].embedding


async def test_models() -> None:
    assert [model.id for model in call(lambda client: client.models.list())] == ["fake"]
    assert [model.id async for model in await acall(_all_models)] == ["fake"]
    assert call(lambda client: client.models.retrieve("fake")).owned_by == "aios"
    with pytest.raises(NotFoundError, match="gpt-4o"):
        call(lambda client: client.models.retrieve("gpt-4o"))


async def _all_models(client: AsyncOpenAI) -> Any:
    return await client.models.list()


@pytest.mark.parametrize(
    "work",
    [
        lambda client: client.files.list(),
        lambda client: client.files.create(file=b"secret", purpose="assistants"),
        lambda client: client.images.generate(prompt="a cat"),
        lambda client: client.completions.create(model="m", prompt="hi"),
        lambda client: client.responses.retrieve("resp_1"),
        lambda client: client.get("https://elsewhere.example/models", cast_to=object),
    ],
)
async def test_other_paths_are_refused_and_never_sent(work: Callable[[Any], Any], network_attempts: list[Any]) -> None:
    with pytest.raises(BadRequestError, match="not served by the kernel") as caught:
        call(work)
    assert "fix: " in caught.value.message
    assert caught.value.code == "unsupported"
    with pytest.raises(BadRequestError, match="not served by the kernel"):
        await acall(_awaited(work))
    assert network_attempts == []


def _awaited(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def awaited(client: Any) -> Any:
        result = work(client)
        return await result if inspect.isawaitable(result) else result

    return awaited


@pytest.mark.parametrize("resource", ["responses", "realtime"])
def test_websockets_are_refused(resource: str) -> None:
    options = {"model": "m"} if resource == "realtime" else {}
    with pytest.raises(Unsupported, match="websocket") as caught:
        call(lambda client: getattr(client, resource).connect(**options))
    assert caught.value.agent == "caller"
