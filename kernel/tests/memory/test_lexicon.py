"""The words of a space: what BM25 gives, what neighbours and sessions add, and that changes leave no trace."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios_kernel.memory import MemoryManager
from aios_kernel.memory.fusion import fused
from aios_kernel.memory.lexicon import Lexicon, Piece
from aios_kernel.memory.words import Stemmer
from aios_kernel.syscalls import MemoryAdd, MemorySearch, MemoryUpdate

_WORDS = ("cat", "dog", "running", "tree", "house")


def _lexicon(*pieces: tuple[str, str]) -> Lexicon:
    lexicon = Lexicon(Stemmer())
    for seq, (text, source) in enumerate(pieces, 1):
        assert lexicon.take(Piece(seq, f"n{seq}", text, source))
    return lexicon


def _by_id(lexicon: Lexicon, query: str) -> dict[str, list[float]]:
    words = lexicon.scores(query)
    return {
        id: [float(scores[slot]) for scores in (words.note, words.window, words.source)]
        for id, slot in lexicon.slot_of.items()
    }


def test_terms_are_stemmed_and_say_something() -> None:
    stemmer = Stemmer()
    assert stemmer.terms("The cafés were running, running!") == ["cafe", "run", "run"]
    assert stemmer.terms("what is it?") == ["what", "is", "it"]
    assert stemmer.terms("") == []


def test_the_score_is_bm25() -> None:
    lexicon = _lexicon(("cat cat dog", "a"), ("dog tree tree tree", "b"), ("tree", "c"))
    mean = 8 / 3
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf * 2 * 2.2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 3 / mean))
    assert _by_id(lexicon, "cats")["n1"][0] == pytest.approx(expected, rel=1e-5)
    assert _by_id(lexicon, "cats")["n2"] == [0, 0, 0]


def test_a_window_is_scored_as_one_text_within_its_source() -> None:
    lexicon = _lexicon(("cat", "a"), ("dog", "a"), ("house", "a"), ("tree", "b"))
    found = _by_id(lexicon, "cat")
    assert found["n1"][1] > found["n2"][1] > found["n3"][1] == found["n4"][1] == 0
    assert found["n1"][2] == found["n3"][2] > found["n4"][2] == 0


_CHANGE = st.tuples(
    st.integers(0, 7),
    st.none() | st.lists(st.sampled_from(_WORDS), max_size=4).map(" ".join),
    st.sampled_from("ab"),
)


@given(st.lists(_CHANGE, max_size=25))
def test_a_changed_lexicon_scores_like_one_made_anew(changes: list[tuple[int, str | None, str]]) -> None:
    lexicon = Lexicon(Stemmer())
    model: dict[str, Piece] = {}
    for seq, (number, text, source) in enumerate(changes, 1):
        id = f"n{number}"
        if text is None:
            lexicon.remove(id)
            model.pop(id, None)
            continue
        old = model.get(id)
        piece = Piece(old.seq if old else seq, id, text, old.source if old else source)
        assert lexicon.take(piece)
        model[id] = piece
    anew = Lexicon(Stemmer())
    for piece in sorted(model.values()):
        assert anew.take(piece)
    assert lexicon.slot_of.keys() == anew.slot_of.keys()
    for word in _WORDS:
        changed, fresh = _by_id(lexicon, word), _by_id(anew, word)
        for id in fresh:
            assert changed[id][:2] == pytest.approx(fresh[id][:2], rel=1e-4, abs=1e-6)


def test_what_must_not_be_given_is_not_but_speaks_for_its_neighbours() -> None:
    lexicon = _lexicon(("cat", "a"), ("dog", "a"), ("house", "b"), ("tree", "b"))
    assert [hit.id for hit in fused(lexicon, "cat", [], {"n2", "n4", "unknown"}, 5)] == ["n2", "n4"]
    lexicon.remove("n1")
    assert "n1" not in {hit.id for hit in fused(lexicon, "cat", [], None, 5)}


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
