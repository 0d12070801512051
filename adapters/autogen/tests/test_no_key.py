"""Together with the adapter of the OpenAI SDK, no API key is needed."""

from __future__ import annotations

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from openai import OpenAIError

import aios_adapters as aios
from aios_adapters.testing import KernelHandle

pytest.importorskip("aios_adapter_openai", reason="another distribution, not installed here")


def test_what_a_client_is_given_arrives() -> None:
    client = OpenAIChatCompletionClient(model="gpt-4o", api_key="given", base_url="http://127.0.0.1:1/v1", timeout=3.0)
    assert (client._client.api_key, str(client._client.base_url), client._client.timeout) == (
        "given",
        "http://127.0.0.1:1/v1/",
        3.0,
    )


async def test_a_client_without_a_key(fake_kernel: KernelHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    client = OpenAIChatCompletionClient(model="gpt-4o")
    agent = AssistantAgent("helper", client)
    with aios.running("alice"):
        result = await agent.run(task="say x")
    assert result.messages[-1].to_text() == "x"  # type: ignore[union-attr]
    assert fake_kernel.ps()[-1].llm_calls == 1
    with pytest.raises(OpenAIError, match="api_key"):
        await agent.run(task="say x")
