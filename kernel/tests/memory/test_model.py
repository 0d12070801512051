"""Notes against a dictionary, in random order, with restarts."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from aios_kernel.errors import NotFound
from aios_kernel.memory import ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate

SPACES = st.sampled_from([("u", "agent/a"), ("u", "agent/a/b"), ("v", "agent/a")])
IDS = st.sampled_from(["a", "b", "c", "d"])
TEXTS = st.text(max_size=20).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))
METADATA = st.dictionaries(
    st.sampled_from(["k", "'", "$.k"]), st.sampled_from([1, 1.5, True, "x", "1", None]), max_size=2
)


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = Path(tempfile.mkdtemp(prefix="aios-memory-"))
        self.memory = self.open()
        self.model: dict[tuple[str, str], dict[str, tuple[str, dict[str, Any], bool]]] = {}

    def open(self) -> MemoryManager:
        return MemoryManager(self.home, HashEmbedder(), lambda model: ExactIndex())

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def notes(self, space: tuple[str, str]) -> dict[str, tuple[str, dict[str, Any], bool]]:
        return self.model.setdefault(space, {})

    @rule(space=SPACES, id=IDS, text=TEXTS, metadata=METADATA, embed=st.booleans())
    def add(self, space: tuple[str, str], id: str, text: str, metadata: dict[str, Any], embed: bool) -> None:
        call = MemoryAdd(text=text, id=id, metadata=metadata, embed=embed)
        note = self.run(self.memory.add(*space, "alice", call))
        assert (note.id, note.text, note.metadata) == (id, text, metadata)
        self.notes(space)[id] = (text, metadata, embed)

    @rule(space=SPACES, id=IDS, text=st.one_of(st.none(), TEXTS), metadata=st.one_of(st.none(), METADATA))
    def update(self, space: tuple[str, str], id: str, text: str | None, metadata: dict[str, Any] | None) -> None:
        call = self.memory.update(*space, MemoryUpdate(id=id, text=text, metadata=metadata))
        known = self.notes(space).get(id)
        if known is None:
            try:
                self.run(call)
            except NotFound:
                return
            raise AssertionError("expected NotFound")
        changed = (known[0] if text is None else text, known[1] if metadata is None else metadata, known[2])
        note = self.run(call)
        assert (note.text, note.metadata) == changed[:2]
        self.notes(space)[id] = changed

    @rule(space=SPACES, id=st.one_of(st.none(), IDS))
    def delete(self, space: tuple[str, str], id: str | None) -> None:
        known = self.notes(space)
        gone = len(known) if id is None else int(id in known)
        assert self.run(self.memory.delete(*space, id)) == gone
        self.model[space] = {} if id is None else {name: note for name, note in known.items() if name != id}

    @rule(space=SPACES, key=st.sampled_from(["k", "'", "$.k"]), value=st.sampled_from([1, 1.0, 1.5, True, "x", "1"]))
    def filter(self, space: tuple[str, str], key: str, value: Any) -> None:
        def same(stored: Any) -> bool:
            return stored == value and isinstance(stored, bool) == isinstance(value, bool)

        matching = {id: note for id, note in self.notes(space).items() if same(note[1].get(key))}
        listed = self.run(self.memory.search(*space, MemorySearch(k=9, filter={key: value}))).notes
        assert {note.id for note in listed} == set(matching)
        found = self.run(self.memory.search(*space, MemorySearch(query="x", k=9, filter={key: value}))).notes
        assert {note.id for note in found} == {id for id, note in matching.items() if note[2]}

    @rule(space=SPACES)
    def index(self, space: tuple[str, str]) -> None:
        from aios_kernel.memory import Space

        self.run(self.memory._indexer.prepare(Space(*space)))

    @rule()
    def restart(self) -> None:
        self.run(self.memory.close())
        self.memory = self.open()

    @invariant()
    def every_note_is_found_the_nearest_first(self) -> None:
        for space, notes in self.model.items():
            listed = self.run(self.memory.search(*space, MemorySearch(k=9))).notes
            assert {note.id: (note.text, note.metadata) for note in listed} == {i: n[:2] for i, n in notes.items()}
            found = self.run(self.memory.search(*space, MemorySearch(query="query", k=9))).notes
            assert {note.id for note in found} == {id for id, note in notes.items() if note[2]}
            query = HashEmbedder().embed(["query"])[0]
            # No text has a word of the query, so that meaning alone decides.
            nearness = [float(HashEmbedder().embed([note.text])[0] @ query) for note in found]
            assert all(better > worse - 1e-4 for better, worse in itertools.pairwise(nearness))
            assert all(better.score >= worse.score for better, worse in itertools.pairwise(found))

    def teardown(self) -> None:
        self.run(self.memory.close())
        self.loop.close()
        shutil.rmtree(self.home)


def test_memory_behaves_like_a_dictionary() -> None:
    run_state_machine_as_test(MemoryMachine, settings=settings(max_examples=12, stateful_step_count=25, deadline=None))
