"""LangChain's own standard suites (`langchain-tests`) on the kernel; nothing in them knows it.

The chat suites run three times: against `ChatOpenAI`, rerouted in a scope, and against `KernelChatModel`, both on the
scripted model, since they ask for tool calls with exact arguments; and, what does not ask for that, against both on the
torch engine (test_standard_torch.py). What is not run stands in tests/outside/deselected.toml, with the reasons.
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
from aios_adapter_langchain import KernelByteStore, KernelChatModel, KernelEmbeddings, KernelVectorStore
from aios_adapters.testing import KernelHandle

suites = pytest.importorskip("langchain_tests.integration_tests")
units = pytest.importorskip("langchain_tests.unit_tests")
pytestmark = [
    pytest.mark.outside,
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema"),
    pytest.mark.filterwarnings("ignore:Benchmarks are automatically disabled"),
]


class Scripted:
    """The scripted model stands behind the kernel."""

    @pytest.fixture(autouse=True)
    def script(self, fake_kernel: KernelHandle, network_attempts: list[Any]) -> Iterator[None]:
        script = _script()
        aios.host().register(script)
        try:
            yield
        finally:
            aios.host().unregister(script)
        assert not network_attempts


class InScope(Scripted):
    """Every test runs in the scope of an agent, which is where `ChatOpenAI` and its like are rerouted."""

    @pytest.fixture(autouse=True)
    def in_a_scope(self, script: None) -> Iterator[None]:
        with aios.running("standard"):
            yield


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


class TestChat(InScope, suites.ChatModelIntegrationTests):
    chat_model_class = ChatOpenAI
    chat_model_params = {"model": "gpt-4o"}
    supports_json_mode = True
    supports_anthropic_inputs = True
    model_override_value = "fake"  # an answer names the model that gave it


class TestKernelChatUnit(units.ChatModelUnitTests):
    chat_model_class = KernelChatModel
    chat_model_params = {}
    init_from_env_params = ({"AIOS_MODEL": "fake"}, {}, {"model": None})


class TestKernelChat(Scripted, suites.ChatModelIntegrationTests):
    chat_model_class = KernelChatModel
    chat_model_params = {}
    supports_json_mode = True
    supports_anthropic_inputs = True
    model_override_value = "fake"


class TestKernelChatInScope(InScope, TestKernelChat):
    """The same where an agent is on."""


class TestEmbeddingsUnit(units.EmbeddingsUnitTests):
    embeddings_class = OpenAIEmbeddings
    embedding_model_params = {"model": "e", "check_embedding_ctx_length": False}
    init_from_env_params = ({"OPENAI_API_KEY": "key"}, {"model": "e"}, {"openai_api_key": "key"})


class TestEmbeddings(InScope, suites.EmbeddingsIntegrationTests):
    embeddings_class = OpenAIEmbeddings
    embedding_model_params = {"model": "e", "check_embedding_ctx_length": False}


class TestKernelEmbeddings(suites.EmbeddingsIntegrationTests):
    embeddings_class = KernelEmbeddings

    @pytest.fixture(autouse=True)
    def kernel(self, fake_kernel: KernelHandle) -> None:
        pass


class TestVectorStore(suites.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, fake_kernel: KernelHandle) -> Any:
        return KernelVectorStore("standard")


class TestByteStore(suites.BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self, fake_kernel: KernelHandle) -> Any:
        return KernelByteStore("standard")

    @pytest.fixture
    def three_values(self) -> Any:
        return b"one", b"", bytes(range(256))


class TestByteStoreAsync(suites.BaseStoreAsyncTests[bytes]):
    @pytest.fixture
    async def kv_store(self, fake_kernel: KernelHandle) -> Any:
        return KernelByteStore("standard")

    @pytest.fixture
    def three_values(self) -> Any:
        return b"one", b"", bytes(range(256))
