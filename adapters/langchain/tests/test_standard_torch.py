"""LangChain's chat suites on the torch engine and the demo model.

What wants a model that follows exactly is left to the scripted engine, where it runs (test_standard.py); it stands in
tests/outside/deselected.toml. All else holds for any model: streams, usage, structured output, forced tool calls, ...
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

import aios_adapters as aios
from aios_adapter_langchain import KernelChatModel
from aios_adapters import _kernel
from aios_kernel.client import connect, stop_in_process
from aios_kernel.config import load

suites = pytest.importorskip("langchain_tests.integration_tests")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.outside,
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),
]


@pytest.fixture(scope="module")
def demo_kernel(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """A kernel in this process with the demo model on the torch engine."""
    with pytest.MonkeyPatch.context() as patch:
        settings = {"KERNEL": "inprocess", "MODEL": "demo", "EMBEDDER": "hash", "VECTORS": "exact"}
        for name, value in {**settings, "HOME": str(tmp_path_factory.mktemp("aios"))}.items():
            patch.setenv(f"AIOS_{name}", value)
        config = load()
        connection = connect(config, client="test-handle")
        yield
        connection.close()
        _kernel.close_links()
        stop_in_process(config)


class OnTorch:
    """Every test on the demo model, in a scope, away from the network."""

    supports_json_mode = True
    supports_anthropic_inputs = True
    model_override_value = "demo"

    @pytest.fixture(autouse=True)
    def in_a_scope(self, demo_kernel: None, network_attempts: list[Any]) -> Iterator[None]:
        with aios.running("standard"):
            yield
        assert not network_attempts


class TestChat(OnTorch, suites.ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {"model": "gpt-4o", "max_tokens": 500}


class TestKernelChat(OnTorch, suites.ChatModelIntegrationTests):
    chat_model_class = KernelChatModel
    chat_model_params = {"max_tokens": 500}
