"""The backends that the contract suite runs over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aios_kernel.storage import SqliteStorage, Storage

BACKENDS: dict[str, Callable[[Path], Storage]] = {"sqlite": lambda home: SqliteStorage(home / "storage.db")}


@pytest.fixture(params=sorted(BACKENDS))
def make_storage(request: pytest.FixtureRequest) -> Callable[[Path], Storage]:
    return BACKENDS[request.param]
