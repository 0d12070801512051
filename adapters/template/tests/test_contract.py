"""The contract suite, for the framework of docs/write-an-adapter.md."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aios_adapters import host
from aios_adapters.contract import AdapterContract, Framework, Tool

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "write-an-adapter.md"


@pytest.fixture
def tinyagents(monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """The framework, imported after its adapter was registered (an installed one has an entry point)."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(HERE.parent / "src"))
    plugin = importlib.import_module("aios_adapter_tinyagents.plugin")
    host().activate()
    host().register(plugin, "tinyagents")
    yield importlib.import_module("tinyagents")
    host().unregister(plugin)
    host().deactivate()
    host().activate()
    for name in ("tinyagents", "aios_adapter_tinyagents.plugin", "aios_adapter_tinyagents"):
        sys.modules.pop(name, None)


class TestContract(AdapterContract):
    @pytest.fixture
    def framework(self, tinyagents: Any) -> Framework:
        async def chat(text: str) -> str:
            return (await tinyagents.Model().ask([{"role": "user", "content": text}], {}))["content"]

        async def agent(name: str, text: str, tools: Sequence[Tool]) -> str:
            return await tinyagents.Agent(name, tinyagents.Model(), {tool.__name__: tool for tool in tools}).run(text)

        return Framework("tinyagents", chat, agent=agent)


def test_the_docs_show_this_adapter() -> None:
    text = DOCS.read_text()
    shown = (HERE.parent / "src" / "aios_adapter_tinyagents" / "plugin.py").read_text().split("\n\n", 1)[1]
    assert f"```python file=tinyagents_aios.py\n{shown}```" in text
    assert len(shown.splitlines()) <= 40
    assert f"```python file=tinyagents.py\n{(HERE / 'tinyagents.py').read_text()}```" in text
