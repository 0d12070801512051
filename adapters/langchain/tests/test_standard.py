"""LangChain's own standard suites (`langchain-tests`), rerouted in a scope; nothing in them knows the kernel.

Deselected, with the reasons, are the tests of `DESELECTED`; skipped are those of inputs that no model here reads
(images, audio, PDF), of Anthropic's message format, and of recorded HTTP, by the suites themselves.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

import aios_adapters as aios
from aios_adapters.testing import KernelHandle

suites = pytest.importorskip("langchain_tests.integration_tests")
units = pytest.importorskip("langchain_tests.unit_tests")

DESELECTED = {
    "test_serdes": "compares with a snapshot file that only langchain-openai's own repository has",
    "test_init_time": "times the constructor of ChatOpenAI; no call is made",
}


@pytest.fixture(autouse=True)
def no_deselected(request: pytest.FixtureRequest) -> None:
    """Skip what is listed."""
    reason = DESELECTED.get(request.node.originalname)
    if reason:
        pytest.skip(reason)


class InScope:
    """Every test runs in the scope of an agent, on the scripted model."""

    @pytest.fixture(autouse=True)
    def in_a_scope(self, fake_kernel: KernelHandle, network_attempts: list[Any]) -> Iterator[None]:
        script = _script()
        aios.host().register(script)
        try:
            with aios.running("standard"):
                yield
        finally:
            aios.host().unregister(script)
        assert not network_attempts


def _script() -> Any:
    # Tests are no package: the module beside this one is loaded by its path.
    spec = importlib.util.spec_from_file_location("aios_langchain_scripted", Path(__file__).with_name("scripted.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.Script()


class TestChatUnit(units.ChatModelUnitTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {"model": "gpt-4o"}
    init_from_env_params = ({"OPENAI_API_KEY": "key"}, {"model": "gpt-4o"}, {"openai_api_key": "key"})


@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema")
class TestChat(InScope, suites.ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {"model": "gpt-4o"}
    supports_json_mode = True
    model_override_value = "fake"  # an answer names the model that gave it


class TestEmbeddingsUnit(units.EmbeddingsUnitTests):
    embeddings_class = OpenAIEmbeddings
    embedding_model_params = {"model": "e", "check_embedding_ctx_length": False}


class TestEmbeddings(InScope, suites.EmbeddingsIntegrationTests):
    embeddings_class = OpenAIEmbeddings
    embedding_model_params = {"model": "e", "check_embedding_ctx_length": False}
