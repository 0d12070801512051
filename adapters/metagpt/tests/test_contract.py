"""The contract suite, for MetaGPT: a kernel process of the main environment, and no tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aios_adapters.contract import AdapterContract, Framework, Tool
from aios_adapters.testing import KernelHandle


class TestContract(AdapterContract):
    kernel = None  # conftest's, in another process

    @pytest.fixture
    def framework(self, kernel: KernelHandle, metagpt: Any, carl: Any) -> Framework:
        async def chat(text: str) -> str:
            class Ask(metagpt.Action):
                async def run(self) -> str:
                    return await self._aask(text)

            return await Ask().run()

        async def agent(name: str, text: str, tools: Sequence[Tool]) -> str:
            if tools:
                pytest.skip("MetaGPT's roles call no tools by the model")
            return (await carl(name=name).run(text)).content

        return Framework("metagpt", chat, agent=agent, shown="{}(Calculator)")
