"""Every backend against a dictionary, in random order, with restarts."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aios_kernel.errors import NotFound
from aios_kernel.storage import Storage

OWNERS = st.sampled_from([("u", "agent/a"), ("u", "agent/ab"), ("v", "agent/a")])
PART = st.sampled_from(["a", "b", "a%", "_", "ä", "\U0010ffff"])
PATHS = st.lists(PART, min_size=1, max_size=3).map("/".join)
PREFIXES = st.builds(
    lambda path, end: (path + end) if path else "", st.one_of(st.just(""), PATHS), st.sampled_from(["", "/"])
)


class StorageMachine(RuleBasedStateMachine):
    make: Callable[[Path], Storage]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="aios-storage-"))
        self.storage = self.make(self.home)
        self.model: dict[tuple[str, str], dict[str, list[bytes]]] = {}

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def missing(self, call: Any) -> None:
        try:
            self.run(call)
        except NotFound:
            return
        raise AssertionError("expected NotFound")

    @rule(owner=OWNERS, path=PATHS, data=st.binary(max_size=8))
    def put(self, owner: tuple[str, str], path: str, data: bytes) -> None:
        versions = self.model.setdefault(owner, {}).setdefault(path, [])
        versions.append(data)
        info = self.run(self.storage.put(*owner, path, data))
        assert (info.version, info.size) == (len(versions), len(data))

    @rule(owner=OWNERS, path=PATHS, version=st.one_of(st.none(), st.integers(0, 3)))
    def get(self, owner: tuple[str, str], path: str, version: int | None) -> None:
        versions = self.model.get(owner, {}).get(path, [])
        number = len(versions) if version is None else version
        if 1 <= number <= len(versions):
            read = self.run(self.storage.get(*owner, path, version))
            assert (read.info.version, read.data) == (number, versions[number - 1])
        else:
            self.missing(self.storage.get(*owner, path, version))

    @rule(owner=OWNERS, path=PATHS, version=st.integers(0, 3))
    def rollback(self, owner: tuple[str, str], path: str, version: int) -> None:
        versions = self.model.get(owner, {}).get(path, [])
        if 1 <= version <= len(versions):
            versions.append(versions[version - 1])
            assert self.run(self.storage.rollback(*owner, path, version)).version == len(versions)
        else:
            self.missing(self.storage.rollback(*owner, path, version))

    @rule(owner=OWNERS, path=PATHS)
    def delete(self, owner: tuple[str, str], path: str) -> None:
        files = self.model.get(owner, {})
        gone = [name for name in files if name == path or name.startswith(path + "/")]
        for name in gone:
            del files[name]
        assert self.run(self.storage.delete(*owner, path)) == len(gone)

    @rule(owner=OWNERS, prefix=PREFIXES)
    def list_(self, owner: tuple[str, str], prefix: str) -> None:
        expected = [(p, len(v), len(v[-1])) for p, v in self.model.get(owner, {}).items() if p.startswith(prefix)]
        listed = self.run(self.storage.list(*owner, prefix))
        assert [(info.path, info.version, info.size) for info in listed] == sorted(expected)

    @rule()
    def restart(self) -> None:
        self.run(self.storage.close())
        self.storage = self.make(self.home)

    @invariant()
    def every_file_is_listed(self) -> None:
        for owner, files in self.model.items():
            assert [info.path for info in self.run(self.storage.list(*owner))] == sorted(files)

    def teardown(self) -> None:
        self.run(self.storage.close())
        self.loop.close()
        shutil.rmtree(self.home)


def test_storage_behaves_like_a_dictionary(make_storage: Callable[[Path], Storage]) -> None:
    machine = type("Machine", (StorageMachine,), {"make": staticmethod(make_storage)})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
