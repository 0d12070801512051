"""MetaGPT in this environment, a kernel process of the main one, and a role to play with."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aios_adapters  # noqa: F401 - before MetaGPT, whose import needs the adapter where there is no configuration
from aios_adapters import _kernel
from aios_adapters.testing import KernelHandle
from aios_kernel.client import Client, connect
from aios_kernel.config import load
from aios_kernel.syscalls import KernelShutdown

ROOT = Path(__file__).parents[3]


def _installed() -> bool:
    try:
        return bool(importlib.metadata.version("metagpt"))
    except importlib.metadata.PackageNotFoundError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests where MetaGPT cannot be: in the environment of the other frameworks."""
    if _installed():
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="MetaGPT needs its own environment: make test-metagpt"))


@pytest.fixture(scope="session")
def metagpt(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any, None, None]:
    """MetaGPT's names that the tests need, imported in a home without a configuration file."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    patch.setenv("METAGPT_PROJECT_ROOT", str(tmp_path_factory.mktemp("project")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its frozen dependencies warn of dozens of deprecations
        from metagpt import logs
        from metagpt.actions import Action, UserRequirement
        from metagpt.memory import Memory
        from metagpt.provider import HumanProvider, OpenAILLM
        from metagpt.provider.base_llm import BaseLLM
        from metagpt.roles import Role
        from metagpt.schema import AIMessage, Message
        from metagpt.team import Team
    yield SimpleNamespace(
        Action=Action, AIMessage=AIMessage, BaseLLM=BaseLLM, HumanProvider=HumanProvider, Memory=Memory,
        Message=Message, OpenAILLM=OpenAILLM, Role=Role, Team=Team, UserRequirement=UserRequirement, logs=logs,
    )  # fmt: skip
    patch.undo()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[KernelHandle, None, None]:
    """A kernel process of the main environment, with the fake engine."""
    settings = {
        "PYTHON": os.environ.get("AIOS_PYTHON", str(ROOT / ".venv" / "bin" / "python")),
        "KERNEL": "auto",
        "HOME": str(tmp_path / "aios"),
        "MODEL": "fake",
        "EMBEDDER": "hash",
        "VECTORS": "exact",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AIOS_{name}", value)
    config = load()
    connection = connect(config, client="test-handle")
    handle = KernelHandle(config, Client(connection))
    try:
        yield handle
    finally:
        handle.client.call(KernelShutdown())
        connection.close()
        _kernel.close_links()


@pytest.fixture
def carl(metagpt: Any) -> Any:
    """A class of roles that pass what they were told to the model."""

    class Repeat(metagpt.Action):
        async def run(self, history: list[Any]) -> str:
            return await self._aask(history[-1].content)

    class Carl(metagpt.Role):
        name: str = "Carl"
        profile: str = "Calculator"

        def __init__(self, **data: Any) -> None:
            super().__init__(**data)
            self.set_actions([Repeat])

    return Carl
