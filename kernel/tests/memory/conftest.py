"""The indexes that the suites run over, and a manager on a fresh folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from aios_kernel.memory import ChromaIndex, ExactIndex, HashEmbedder, MemoryManager, VectorIndex

INDEXES: dict[str, Callable[[Path, str], VectorIndex]] = {
    "chroma": lambda home, model: ChromaIndex(home / "chroma", model),
    "exact": lambda home, model: ExactIndex(),
}

MakeManager = Callable[[Path], MemoryManager]


@pytest.fixture(params=sorted(INDEXES))
def make_index(request: pytest.FixtureRequest) -> Callable[[Path, str], VectorIndex]:
    return INDEXES[request.param]


@pytest.fixture
def make_memory(make_index: Callable[[Path, str], VectorIndex]) -> MakeManager:
    return lambda home: MemoryManager(home, HashEmbedder(), lambda model: make_index(home, model), index_from=0)


@pytest.fixture
async def memory(make_memory: MakeManager, tmp_path: Path) -> AsyncIterator[MemoryManager]:
    manager = make_memory(tmp_path)
    yield manager
    await manager.close()
