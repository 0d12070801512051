"""LangGraph's own conformance suite for checkpointers (`pip install langgraph-checkpoint-conformance`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

import aios_adapters as aios
from aios_adapter_langchain import KernelCheckpointSaver
from aios_adapters.testing import KernelHandle

conformance = pytest.importorskip("langgraph.checkpoint.conformance")


class Forgetful(BaseCheckpointSaver[Any]):
    """Each access is made by another run of the agent, with a new saver: all that is found is the kernel's."""

    async def aget_tuple(self, config: Any) -> Any:
        with aios.running("forgetful"):
            return await InMemorySaver().aget_tuple(config)

    async def alist(self, config: Any, **options: Any) -> AsyncIterator[Any]:
        with aios.running("forgetful"):
            found = [item async for item in InMemorySaver().alist(config, **options)]
        for item in found:
            yield item

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        with aios.running("forgetful"):
            return await InMemorySaver().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        with aios.running("forgetful"):
            await InMemorySaver().aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        with aios.running("forgetful"):
            await InMemorySaver().adelete_thread(thread_id)

    def get_next_version(self, current: Any, channel: None) -> Any:
        return InMemorySaver().get_next_version(current, channel)


@pytest.mark.parametrize("make", [InMemorySaver, Forgetful])
async def test_checkpointer(fake_kernel: KernelHandle, make: Any) -> None:
    @conformance.checkpointer_test(name="kernel")
    async def saver() -> AsyncIterator[Any]:
        yield make()

    @aios.agent(name="conformance")
    async def run() -> Any:
        return await conformance.validate(saver)

    report = await run()
    assert report.passed_all_base(), report.to_dict()
    assert any(program.storage_calls for program in fake_kernel.ps())


class NothingKept(KernelCheckpointSaver):
    """Forgets what this process has seen before each access: all that is found is the kernel's."""

    def _room(self, scope: Any) -> Any:
        self._rooms.clear()
        return super()._room(scope)


@pytest.mark.parametrize("make", [KernelCheckpointSaver, NothingKept])
@pytest.mark.parametrize("in_a_scope", [False, True])
async def test_kernel_saver(fake_kernel: KernelHandle, make: Any, in_a_scope: bool) -> None:
    @conformance.checkpointer_test(name="kernel")
    async def saver() -> AsyncIterator[Any]:
        yield make()

    if in_a_scope:
        with aios.running("conformance"):
            report = await conformance.validate(saver)
    else:
        report = await conformance.validate(saver)
    assert report.passed_all(), report.to_dict()
    assert report.conformance_level() == "FULL"
    (row,) = [row for row in fake_kernel.ps() if row.storage_calls]
    assert row.agent == ("conformance" if in_a_scope else "langgraph")
