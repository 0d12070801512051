"""LangChain's own standard suites on the fakes and stores that LangChain ships; `test_passthrough.py` runs them twice.

Many of the chat tests fail, because the fake answers neither with tools nor with JSON: they must fail in both runs.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests import integration_tests as suites
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.memory import InMemorySaver


class TestChat(suites.ChatModelIntegrationTests):
    chat_model_class = FakeListChatModel
    chat_model_params = {"responses": ["one", "two", "three"]}
    has_tool_calling = True
    has_structured_output = True


class TestVectors(suites.VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Any:
        return InMemoryVectorStore(self.get_embeddings())


class TestBytes(suites.BaseStoreSyncTests[bytes]):
    @pytest.fixture
    def kv_store(self) -> Any:
        return InMemoryByteStore()

    @pytest.fixture
    def three_values(self) -> Any:
        return b"one", b"two", b"three"


class TestTools(ToolsUnitTests):
    @property
    def tool_constructor(self) -> Any:
        from langchain_core.tools import StructuredTool

        return StructuredTool.from_function(lambda a: str(a), name="show", description="Show a number.")

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"a": 1}


async def test_checkpointer() -> None:
    @checkpointer_test(name="memory")
    async def saver() -> Any:
        yield InMemorySaver()

    assert (await validate(saver)).passed_all_base()
