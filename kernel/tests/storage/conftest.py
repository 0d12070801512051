"""The backends that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aios_kernel.storage import SqliteStorage, Storage

BACKENDS: dict[str, Callable[[Path, int], Storage]] = {
    "sqlite": lambda home, quota: SqliteStorage(home / "storage.db", quota)
}


@pytest.fixture(params=sorted(BACKENDS))
def make_storage(request: pytest.FixtureRequest) -> Callable[..., Storage]:
    return lambda home, quota=0: BACKENDS[request.param](home, quota)
