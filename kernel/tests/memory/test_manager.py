"""Notes: what is added is found, by whom it should be, under every index."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from aios_kernel.errors import Cancelled, ConfigError, InternalError, InvalidRequest, NotFound
from aios_kernel.memory import ExactIndex, HashEmbedder, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate, Note

NS = "agent/alice"


async def add(memory: MemoryManager, text: str, *, principal: str = "u", namespace: str = NS, **more: Any) -> Note:
    return await memory.add(principal, namespace, "alice", MemoryAdd(text=text, **more))


async def find(
    memory: MemoryManager, query: str = "", *, principal: str = "u", namespace: str = NS, **more: Any
) -> list[Note]:
    return (await memory.search(principal, namespace, MemorySearch(query=query, **more))).notes


async def test_a_note_is_found_by_what_it_says(memory: MemoryManager) -> None:
    flat = await add(memory, "The flat in Lisbon costs 900 euros a month", metadata={"city": "Lisbon", "n": [1, None]})
    await add(memory, "Alice prefers tea to coffee")
    await add(memory, "The train leaves at nine")
    notes = await find(memory, "how much is the flat in Lisbon", k=2)
    assert notes[0].id == flat.id
    assert (notes[0].text, notes[0].author, notes[0].namespace) == (flat.text, "alice", NS)
    assert notes[0].metadata == {"city": "Lisbon", "n": [1, None]}
    assert notes[0].score is not None
    assert notes[0].score > (notes[1].score or 0)
    assert len(notes) == 2


async def test_an_acknowledged_note_is_found_at_once_while_others_are_added(memory: MemoryManager) -> None:
    async def one(n: int) -> None:
        note = await add(memory, f"word{n} number{n}")
        assert (await find(memory, f"word{n} number{n}", k=1))[0].id == note.id

    await asyncio.gather(*(one(n) for n in range(100)))
    await memory._indexer.prepare(_space())
    await asyncio.gather(*(one(n) for n in range(100, 150)))
    assert [note.text for note in await find(memory, "word7 number7", k=1)] == ["word7 number7"]
    assert len(await find(memory, "word7", k=1000)) == 150


def _space() -> Any:
    from aios_kernel.memory import Space

    return Space("u", NS)


@pytest.mark.parametrize("indexed", [False, True])
async def test_update_and_delete_change_what_is_found(memory: MemoryManager, indexed: bool) -> None:
    async def settle() -> None:
        if indexed:
            await memory._indexer.prepare(_space())

    cat = await add(memory, "the cat sleeps", metadata={"kind": "pet"})
    dog = await add(memory, "the dog barks")
    await settle()
    changed = await memory.update("u", NS, MemoryUpdate(id=cat.id, text="a parrot talks"))
    assert (changed.text, changed.metadata, changed.created_s) == ("a parrot talks", {"kind": "pet"}, cat.created_s)
    assert (await find(memory, "parrot talks", k=1))[0].id == cat.id
    assert (await find(memory, "the cat sleeps", k=2))[0].id == dog.id
    await memory.update("u", NS, MemoryUpdate(id=cat.id, metadata={"kind": "bird"}))
    assert (await memory.get("u", NS, cat.id)).metadata == {"kind": "bird"}
    assert await find(memory, filter={"kind": "pet"}) == []
    await settle()
    assert [note.id for note in await find(memory, "parrot", filter={"kind": "bird"})] == [cat.id]
    assert await memory.delete("u", NS, cat.id) == 1
    assert [note.id for note in await find(memory, "parrot talks", k=5)] == [dog.id]
    await settle()
    assert [note.id for note in await find(memory, "parrot talks", k=5)] == [dog.id]
    assert await memory.delete("u", NS, cat.id) == 0
    assert await find(memory, filter={"kind": "bird"}) == []


async def test_an_add_with_an_id_replaces_and_keeps_the_age(memory: MemoryManager) -> None:
    first = await add(memory, "one", id="k")
    await add(memory, "two")
    again = await add(memory, "three", id="k", metadata={"v": 2})
    assert again.created_s == first.created_s
    assert [note.text for note in await find(memory)] == ["three", "two"]
    assert (await memory.get("u", NS, "k")).metadata == {"v": 2}
    await add(memory, "four", id="k", embed=False)
    assert "k" not in {note.id for note in await find(memory, "three", k=10)}
    await memory._indexer.prepare(_space())
    assert "k" not in {note.id for note in await find(memory, "three", k=10)}


async def test_rows_without_a_vector_are_found_by_id_age_and_metadata_only(memory: MemoryManager) -> None:
    await add(memory, "hidden words", id="r", embed=False, metadata={"thread": "t1"})
    await add(memory, "other words", metadata={"thread": "t1"})
    assert [note.text for note in await find(memory, "hidden words", k=5)] == ["other words"]
    assert [note.text for note in await find(memory, "hidden words", k=5, filter={"thread": "t1"})] == ["other words"]
    assert [note.text for note in await find(memory, filter={"thread": "t1"})] == ["hidden words", "other words"]
    updated = await memory.update("u", NS, MemoryUpdate(id="r", text="new words"))
    assert updated.text == "new words"
    assert len(await find(memory, "new words", k=5)) == 1


async def test_an_empty_query_lists_the_oldest_first(memory: MemoryManager) -> None:
    for n in range(12):
        await add(memory, f"note {n}", metadata={"even": n % 2 == 0})
    assert [note.text for note in await find(memory, k=3)] == ["note 0", "note 1", "note 2"]
    assert [note.text for note in await find(memory, k=2, filter={"even": False})] == ["note 1", "note 3"]
    assert all(note.score is None for note in await find(memory, k=100))


async def test_filters_mean_equality_of_value_and_type(memory: MemoryManager) -> None:
    values: dict[str, Any] = {
        "int": 1,
        "float": 1.0,
        "true": True,
        "text": "1",
        "long": "x" * 500,
        "none": None,
        "list": [1],
    }
    for id, value in values.items():
        await add(memory, id, id=id, metadata={"v": value, "w": "both"})
    for wanted, expected in (
        (1, {"int", "float"}), (1.0, {"int", "float"}), (True, {"true"}), ("1", {"text"}), ("x" * 500, {"long"}),
        ("x" * 499, set()), (float("nan"), set()), (float("inf"), set()), ("None", set()),
    ):  # fmt: skip
        for query in ("", "int float true text long"):
            found = await find(memory, query, k=50, filter={"v": wanted, "w": "both"})
            assert {note.id for note in found} == expected, (wanted, query)
    assert await find(memory, filter={"v": 1, "w": "neither"}) == []
    assert await find(memory, filter={"missing": 1}) == []


@pytest.mark.parametrize("key", ["'", '"', "a.b", "$.v", "v') OR 1=1 --", "", "ключ", "\0", "%"])
async def test_filter_keys_are_data(memory: MemoryManager, key: str) -> None:
    await add(memory, "secret", metadata={"v": 1})
    mine = await add(memory, "mine", metadata={key: "x"})
    assert [note.id for note in await find(memory, filter={key: "x"})] == [mine.id]
    assert await find(memory, "secret", filter={key: "x' OR '1'='1"}) == []


async def test_the_filter_comes_before_the_ranking(memory: MemoryManager) -> None:
    for _ in range(60):
        await add(memory, "exactly the words of the query", metadata={"owner": "other"})
    far = await add(memory, "something else entirely", metadata={"owner": "me"})
    found = await find(memory, "exactly the words of the query", k=1, filter={"owner": "me"})
    assert [note.id for note in found] == [far.id]
    await memory._indexer.prepare(_space())
    found = await find(memory, "exactly the words of the query", k=1, filter={"owner": "me"})
    assert [note.id for note in found] == [far.id]


async def test_spaces_never_mix(memory: MemoryManager) -> None:
    spaces = [("u", "agent/a"), ("u", "agent/ab"), ("u", "agent/a/b"), ("v", "agent/a"), ("u", "group/a")]
    for number, (principal, namespace) in enumerate(spaces):
        await add(memory, f"canary {number}", principal=principal, namespace=namespace, id="same", metadata={"c": 1})
    for number, (principal, namespace) in enumerate(spaces):
        at = {"principal": principal, "namespace": namespace}
        for notes in (
            await find(memory, "canary", k=99, **at),
            await find(memory, "", k=99, **at),
            await find(memory, "canary", k=99, filter={"c": 1}, **at),
            [await memory.get(principal, namespace, "same")],
        ):
            assert [note.text for note in notes] == [f"canary {number}"]
    assert await memory.delete("u", "agent/a", None) == 1
    assert [len(await find(memory, "canary", principal=p, namespace=n)) for p, n in spaces] == [0, 1, 1, 1, 1]
    for namespace in ("agent/%", "agent/_", "agent"):
        assert await memory.delete("u", namespace, None) == 0


async def test_a_whole_namespace_is_forgotten_and_can_be_used_again(memory: MemoryManager) -> None:
    for n in range(30):
        await add(memory, f"old {n}")
    await memory._indexer.prepare(_space())
    await add(memory, "old but not indexed")
    assert await memory.delete("u", NS, None) == 31
    assert await find(memory, "old", k=50) == []
    new = await add(memory, "new")
    await memory._indexer.prepare(_space())
    assert [note.id for note in await find(memory, "old", k=50)] == [new.id]


async def test_bad_requests_are_typed(memory: MemoryManager) -> None:
    cyclic: dict[str, Any] = {}
    cyclic["me"] = cyclic
    for call in (
        add(memory, "x", namespace="agent/../bob"),
        add(memory, "x", namespace=""),
        add(memory, "x", id=""),
        add(memory, "x", id="a\0b"),
        add(memory, "\ud800"),
        add(memory, "x" * (8 * 1024 * 1024 + 1)),
        add(memory, "x", metadata={"f": b"bytes"}),
        add(memory, "x", metadata={"f": float("nan")}),
        add(memory, "x", metadata={"f": "\ud800"}),
        add(memory, "x", metadata={"\ud800": 1}),
        add(memory, "x", metadata=cyclic),
        find(memory, "x", k=0),
        find(memory, "\ud800"),
        find(memory, "x", filter={"\ud800": 1}),
        find(memory, "x", filter={"f": [1]}),
        memory.get("u", NS, "\0"),
        memory.delete("u", NS, ""),
        memory.update("u", NS, MemoryUpdate(id="", text="x")),
        memory.embed_texts([]),
        memory.embed_texts(["ok", "\ud800"]),
    ):
        with pytest.raises(InvalidRequest):
            await call
    assert await find(memory, k=99) == []
    for missing in (memory.get("u", NS, "n"), memory.update("u", NS, MemoryUpdate(id="n", text="x"))):
        with pytest.raises(NotFound):
            await missing


async def test_hostile_text_comes_back_as_it_was(memory: MemoryManager) -> None:
    for text in ("", "a\0b", "'; DROP TABLE notes; --", "\U0010ffff", "é" * 1000):
        note = await add(memory, text, metadata={"t": text})
        assert (await memory.get("u", NS, note.id)).text == text
        assert [found.text for found in await find(memory, filter={"t": text})] == [text]


async def test_texts_are_embedded_for_the_llm_embed_syscall(memory: MemoryManager) -> None:
    made = await memory.embed_texts(["the cat", "the cat", "a dog barks"])
    assert made.model == HashEmbedder.name
    assert made.vectors[0] == made.vectors[1] != made.vectors[2]
    assert np.linalg.norm(made.vectors[2]) == pytest.approx(1)
    assert made.usage.prompt_tokens == 7


class _Failing:
    """An embedder that breaks on one word and counts its calls."""

    name = "failing"

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._inner = HashEmbedder()

    def embed(self, texts: Any) -> Any:
        self.batches.append(len(texts))
        if any("unloadable" in text for text in texts):
            raise ConfigError("no model", fix="install one")
        if any("poison" in text for text in texts):
            raise ValueError("poisoned")
        if any("nan" in text for text in texts):
            return np.full((len(texts), 4), np.nan, np.float32)
        return self._inner.embed(texts)

    def count_tokens(self, texts: Any) -> int:
        return self._inner.count_tokens(texts)


async def test_texts_that_wait_are_embedded_together_and_fail_alone(tmp_path: Any) -> None:
    embedder = _Failing()
    memory = MemoryManager(tmp_path, embedder, lambda model: ExactIndex())
    notes = await asyncio.gather(*(add(memory, f"note {n}") for n in range(100)))
    assert len(embedder.batches) < 50
    assert sum(embedder.batches) == 100
    assert len({note.id for note in notes}) == 100
    mixed = await asyncio.gather(
        *(add(memory, f"note {n}") for n in range(10)), add(memory, "poison"), add(memory, "nan"),
        add(memory, "unloadable"), return_exceptions=True,
    )  # fmt: skip
    assert all(isinstance(note, Note) for note in mixed[:10])
    assert isinstance(mixed[10], InternalError)
    assert "poisoned" in mixed[10].message
    assert isinstance(mixed[11], InternalError)
    assert isinstance(mixed[12], ConfigError)
    assert len(await find(memory, k=500)) == 110
    await memory.close()
    with pytest.raises(Cancelled):
        await add(memory, "late")


async def test_a_text_is_embedded_once(tmp_path: Any) -> None:
    embedder = _Failing()
    memory = MemoryManager(tmp_path, embedder, lambda model: ExactIndex())
    for _ in range(3):
        await asyncio.gather(add(memory, "the same"), add(memory, "the same"), find(memory, "the same"))
    assert sum(embedder.batches) == 1
    with pytest.raises(InternalError):
        await add(memory, "poison")
    assert len(await find(memory, "the same", k=9)) == 6
    await memory.close()


async def test_nearly_equal_notes_are_all_found(memory: MemoryManager) -> None:
    """The case that chroma's graph search gets wrong for about one vector in twenty."""
    names = [f"c0w{n % 4}x{n}" for n in range(1200)]
    await asyncio.gather(*(add(memory, f"{name} draft") for name in names))
    assert {note.text for note in await find(memory, "c0w0x0 draft", k=5000)} == {f"{name} draft" for name in names}


async def test_a_space_too_large_for_ram_is_searched_through_the_index(make_index: Any, tmp_path: Any) -> None:
    memory = MemoryManager(tmp_path, HashEmbedder(), lambda model: make_index(tmp_path, model), max_vectors=50)
    await asyncio.gather(*(add(memory, f"fact{n} item{n}", metadata={"even": n % 2 == 0}) for n in range(120)))
    for n in (3, 119):
        assert (await find(memory, f"fact{n} item{n}", k=1))[0].text == f"fact{n} item{n}"
    new = await add(memory, "zanzibar")
    assert (await find(memory, "zanzibar", k=1))[0].id == new.id
    await memory.delete("u", NS, new.id)
    assert new.id not in {note.id for note in await find(memory, "zanzibar", k=200)}
    assert len(await find(memory, "fact", k=200, filter={"even": True})) == 60
    await memory.close()


async def test_a_cancelled_add_leaves_rows_and_index_in_step(memory: MemoryManager) -> None:
    tasks = [asyncio.ensure_future(add(memory, f"note {n}", id=f"n{n}")) for n in range(60)]
    for n, task in enumerate(tasks):
        if n % 3 == 0:
            await asyncio.sleep(0.001)
            task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    await memory.get("u", NS, next(note.id for note in ended if isinstance(note, Note)))  # behind all writes
    rows = {note.id for note in await find(memory, k=99)}
    assert {note.id for note in await find(memory, "note", k=99)} == rows
    assert rows >= {note.id for note in ended if isinstance(note, Note)}


async def test_an_update_that_races_with_an_embedding_add_keeps_the_vector_right(memory: MemoryManager) -> None:
    for n in range(20):
        await add(memory, "first row", id=f"r{n}", embed=False)
        await asyncio.gather(
            add(memory, "entirely different", id=f"r{n}"),
            memory.update("u", NS, MemoryUpdate(id=f"r{n}", text="parrot")),
        )
    stored = await memory._db.read(lambda db: list(db.execute("SELECT text, vector FROM notes")))
    assert len(stored) == 20
    for text, vector in stored:
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), HashEmbedder().embed([text])[0], atol=1e-6)
