"""A shelf: what BM25 gives, what neighbours and sessions add, and that changes leave no trace."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_kernel.memory import HashEmbedder, MemoryManager, bm25, ranking
from aios_kernel.memory.matrix import Matrix
from aios_kernel.memory.shelf import Entry, Shelf
from aios_kernel.memory.terms import TermReader, pack, speaker_of, unpack
from aios_kernel.memory.words import Stemmer
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate

_WORDS = ("cat", "dog", "running", "tree", "house")
_READER = TermReader()


def _entry(seq: int, text: str, source: str | None, id: str = "") -> Entry:
    return Entry(seq, id or f"n{seq}", source, float(seq), None, HashEmbedder().embed([text])[0], _READER.of(text))


def _shelf(*pieces: tuple[str, str | None]) -> Shelf:
    shelf = Shelf()
    for seq, (text, source) in enumerate(pieces, 1):
        assert shelf.take([_entry(seq, text, source)])
    return shelf


def _by_id(shelf: Shelf, query: str) -> Mapping[str, list[float]]:
    slots = np.flatnonzero(shelf.alive)
    said = bm25.fields(shelf, bm25.asked(shelf, _READER.of(query).keys), slots)
    return {shelf.ids[slot]: [float(scores[at]) for scores in said] for at, slot in enumerate(slots)}


def _ranked(shelf: Shelf, query: str, allowed: set[str] | None = None, k: int = 5) -> list[str]:
    question = ranking.Question(*_READER.asked(query), HashEmbedder().embed([query])[0], now_s=0.0)
    return [hit.id for hit in ranking.ranked(shelf, question, shelf.eligible(allowed, 0.0), k)]


def test_terms_are_stemmed_and_say_something() -> None:
    stemmer = Stemmer()
    assert stemmer.terms("The cafés were running, running!") == ["cafe", "run", "run"]
    assert stemmer.terms("what is it?") == ["what", "is", "it"]
    assert stemmer.terms("") == []


@given(st.text(max_size=60))
def test_packed_terms_are_the_same_again(text: str) -> None:
    terms = _READER.of(text)
    keys, counts = unpack(pack(terms))
    assert (keys.tolist(), counts.tolist()) == (terms.keys.tolist(), terms.counts.tolist())
    assert counts.sum() == len(Stemmer().terms(text))


def test_the_score_is_bm25() -> None:
    shelf = _shelf(("cat cat dog", "a"), ("dog tree tree tree", "b"), ("tree", "c"))
    mean = 8 / 3
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 * 1.9 / (2 + 0.9 * (1 - 0.4 + 0.4 * 3 / mean))
    assert _by_id(shelf, "cats")["n1"][0] == pytest.approx(expected, rel=1e-5)
    assert _by_id(shelf, "cats")["n2"] == [0, 0, 0]


def test_a_window_is_scored_as_one_text_within_its_source() -> None:
    found = _by_id(_shelf(("cat", "a"), ("dog", "a"), ("house", "a"), ("tree", "b")), "cat")
    assert found["n1"][1] >= found["n2"][1] > found["n3"][1] == found["n4"][1] == 0
    assert found["n1"][2] == found["n3"][2] > found["n4"][2] == 0


def test_a_pause_ends_a_conversation_that_nobody_named() -> None:
    shelf = Shelf()
    for seq, (text, minutes) in enumerate((("cat", 0), ("dog", 20), ("house", 120), ("tree", 130)), 1):
        assert shelf.take([_entry(seq, text, "\nrun")._replace(time_s=60.0 * minutes)])
    found = _by_id(shelf, "cat")
    assert found["n2"][1] > found["n3"][1] == 0
    assert found["n2"][2] > found["n3"][2] == found["n4"][2] == 0
    assert shelf.take([_entry(1, "house", "\nrun", "n1")])
    assert _by_id(shelf, "house")["n2"][1] > 0


def test_the_one_who_is_named_speaks_first() -> None:
    texts = ("Ann: I went there too", "Ben: I went there too", "a cat sat", "Ann: well", "Ben: well", "it rains")
    shelf = _shelf(*((text, None) for text in texts))
    for query, other in (("where did Ben go?", "n1"), ("where did Ann go?", "n2")):
        found = _ranked(shelf, query, k=6)
        assert found.index("n2" if other == "n1" else "n1") < found.index(other)
    assert [speaker_of(text) for text in ("Ann Lee: hi", "note: x", "see http://x", "12:30 tea", "a: b c", "x")] == [
        "Ann Lee", "note", None, None, "a", None,
    ]  # fmt: skip
    with_name = _READER.of("I went there", speaker="Ben")
    assert with_name.keys.size == _READER.of("I went there").keys.size + 1
    assert _READER.asked("Ben?")[1][0] in with_name.keys


def test_notes_without_a_source_stand_alone() -> None:
    found = _by_id(_shelf(("cat", None), ("dog", None)), "cat")
    assert found["n2"] == [0, 0, 0]
    assert found["n1"][2] == 0


_CHANGE = st.tuples(
    st.integers(0, 7),
    st.none() | st.lists(st.sampled_from(_WORDS), max_size=4).map(" ".join),
    st.sampled_from("ab"),
)


@given(st.lists(_CHANGE, max_size=25), st.integers(1, 9))
def test_a_changed_shelf_scores_like_one_made_anew(changes: list[tuple[int, str | None, str]], together: int) -> None:
    shelf, waiting = Shelf(), list[Entry]()
    model: dict[str, tuple[int, str, str]] = {}
    for seq, (number, text, source) in enumerate(changes, 1):
        id = f"n{number}"
        if text is not None:
            at, _, where = model.get(id, (seq, "", source))
            waiting.append(_entry(at, text, where, id))
            model[id] = (at, text, where)
        if text is None or len(waiting) >= together:
            assert shelf.take(waiting)
            waiting.clear()
        if text is None:
            shelf.remove(id)
            model.pop(id, None)
        _by_id(shelf, "cat")  # what was there before is in runs of its own
    assert shelf.take(waiting)
    anew = Shelf()
    for id, (at, text, where) in sorted(model.items(), key=lambda item: item[1]):
        assert anew.take([_entry(at, text, where, id)])
    for word in _WORDS:
        changed, fresh = _by_id(shelf, word), _by_id(anew, word)
        assert changed.keys() == fresh.keys()
        for id in fresh:
            assert changed[id] == pytest.approx(fresh[id], rel=1e-4, abs=1e-6)
    if anew.matrix is not None and shelf.matrix is not None:
        query, slots = HashEmbedder().embed(["cat tree"])[0], [shelf.slot_of[id] for id in anew.ids]
        assert (shelf.matrix.cosines(query, np.array(slots)) == anew.matrix.cosines(query)).all()


def test_what_must_not_be_given_is_not_but_speaks_for_its_neighbours() -> None:
    shelf = _shelf(("cat", "a"), ("dog", "a"), ("house", "b"), ("tree", "b"))
    assert _ranked(shelf, "cat", {"n2", "n4", "unknown"}) == ["n2", "n4"]
    shelf.remove("n1")
    assert "n1" not in _ranked(shelf, "cat")
    assert _ranked(shelf, "cat", set()) == []


def test_signs_choose_nearly_the_same_as_all_numbers() -> None:
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((300, 384))
    vectors = (topics[rng.integers(0, 300, 30_000)] + 0.8 * rng.standard_normal((30_000, 384))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = Matrix(384)
    matrix.extend(vectors[:20_000])
    matrix.likely(vectors[0], 10, np.ones(20_000, np.bool_))  # the rest is compared note by note
    matrix.extend(vectors[20_000:])
    found = 0
    for query in vectors[rng.integers(0, 30_000, 50)]:
        likely = matrix.likely(query, 1_500, np.ones(30_000, np.bool_))
        found += len(np.intersect1d(likely, np.argsort(-(vectors @ query))[:10]))
    assert found / 500 > 0.99


def test_a_large_space_is_ranked_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{_WORDS[n % 5]} {_WORDS[n // 5 % 5]} number{n}" for n in range(600)]
    shelf = _shelf(*((text, f"s{n // 20}") for n, text in enumerate(texts)))
    queries = texts[::50]
    small = [_ranked(shelf, query, k=1) for query in queries]
    for name, value in (("_SMALL", 80), ("_POOL", 40), ("_EXACT", 100), ("_LIKELY", 80)):
        monkeypatch.setattr(ranking, name, value)
    monkeypatch.setattr(bm25, "_ALL_TERMS_UP_TO", 100)
    assert [_ranked(shelf, query, k=1) for query in queries] == small
    assert len(_ranked(shelf, "running", k=600)) == 600


async def test_a_rare_word_and_its_session_find_a_note(memory: MemoryManager) -> None:
    for session in range(4):
        for turn in range(5):
            text = f"we talk about topic{session} part{turn}" + (" zanzibar" if (session, turn) == (2, 1) else "")
            call = MemoryAdd(text=text, id=f"{session}.{turn}", metadata={"session": session})
            await memory.add("u", "agent/a", "a", call)
    found = (await memory.search("u", "agent/a", MemorySearch(query="Zanzibar?", k=3))).notes
    assert found[0].id == "2.1"
    assert {note.id for note in found} == {"2.0", "2.1", "2.2"}
    await memory.update("u", "agent/a", MemoryUpdate(id="2.1", text="nothing"))
    await memory.update("u", "agent/a", MemoryUpdate(id="0.3", text="zanzibar again"))
    found = (await memory.search("u", "agent/a", MemorySearch(query="Zanzibar?", k=1))).notes
    assert found[0].id == "0.3"
    await memory.delete("u", "agent/a", "0.3")
    assert "0.3" not in {n.id for n in (await memory.search("u", "agent/a", MemorySearch(query="Zanzibar?"))).notes}
