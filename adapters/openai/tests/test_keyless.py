"""Clients without a key: built anywhere, refused at the first request that would leave."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

import aios_adapters as aios
from aios_adapters import host

MESSAGES: list[Any] = [{"role": "user", "content": "say hi"}]
AZURE: Any = {"azure_endpoint": "https://nowhere.example", "api_version": "2024-10-21"}
BUILDERS: list[Callable[..., Any]] = [
    OpenAI,
    AsyncOpenAI,
    lambda **options: AzureOpenAI(**AZURE, **options),
    lambda **options: AsyncAzureOpenAI(**AZURE, **options),
]


async def ask(client: Any) -> Any:
    answer = client.chat.completions.create(model="m", messages=MESSAGES)
    return answer if isinstance(client, OpenAI) else await answer


@pytest.fixture
def undone() -> Any:
    """Take the adapter's patches off for a while."""
    host().deactivate()
    yield
    host().activate()


def original_error(build: Callable[..., Any]) -> Exception:
    """What the unpatched constructor raises."""
    host().deactivate()
    try:
        with pytest.raises(openai.OpenAIError) as caught:
            build()
    finally:
        host().activate()
    return caught.value


@pytest.mark.parametrize("build", BUILDERS)
async def test_the_first_request_raises_what_the_constructor_would_have(
    build: Callable[..., Any], network_attempts: list[Any]
) -> None:
    expected = original_error(build)
    client = build()
    for _ in range(2):
        with pytest.raises(openai.OpenAIError) as caught:
            await ask(client)
        assert (type(caught.value), caught.value.args) == (type(expected), expected.args)
    assert network_attempts == []


@pytest.mark.usefixtures("fake_kernel")
@pytest.mark.parametrize("build", BUILDERS)
async def test_a_client_built_outside_works_inside(build: Callable[..., Any]) -> None:
    client = build()

    @aios.agent(name="late")
    async def agent() -> Any:
        return await ask(client)

    assert (await agent()).choices[0].message.content == "hi"


def test_copies_are_keyless_too() -> None:
    with pytest.raises(openai.OpenAIError, match="Missing credentials"):
        OpenAI().with_options(timeout=3).models.list()


def test_a_key_that_comes_later_is_used() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={"object": "list", "data": []})

    client = OpenAI(http_client=httpx.Client(transport=httpx.MockTransport(answer)))
    client.api_key = "sk-later"
    client.models.list()
    assert seen == ["Bearer sk-later"]


def test_clients_with_a_key_are_untouched() -> None:
    client = OpenAI(api_key="sk-x")
    assert "_prepare_options" not in vars(client)
    assert client.api_key == "sk-x"


@pytest.mark.parametrize("client", [OpenAI, AsyncOpenAI, AzureOpenAI, AsyncAzureOpenAI])
def test_frameworks_still_see_the_arguments(client: Any) -> None:
    seen = inspect.getfullargspec(client.__init__)
    assert seen == inspect.getfullargspec(client.__init__.__wrapped__)
    assert "base_url" in seen.kwonlyargs


def test_other_errors_of_the_constructor_stay() -> None:
    with pytest.raises(TypeError, match="max_retries"):
        OpenAI(max_retries=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="api_version"):
        AzureOpenAI(azure_endpoint="https://nowhere.example")
    with pytest.raises(openai.OpenAIError, match="cannot be combined"):
        OpenAI(provider=openai.providers.bedrock(region="eu-west-1"), base_url="https://nowhere.example")  # type: ignore[attr-defined]


def test_undone_the_constructor_raises_again(undone: None) -> None:
    with pytest.raises(openai.OpenAIError, match="Missing credentials"):
        OpenAI()
