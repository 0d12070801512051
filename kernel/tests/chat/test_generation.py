"""Stop strings: the text before the first one comes out, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios_kernel.chat.generation import StopFilter

ALPHABET = st.text("abc", max_size=30)


@given(text=ALPHABET, stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), cuts=st.data())
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: st.DataObject) -> None:
    stop_filter, shown, rest = StopFilter(tuple(stops)), "", text
    while rest and not stop_filter.hit:
        size = cuts.draw(st.integers(1, len(rest)))
        shown += stop_filter.push(rest[:size])
        rest = rest[size:]
        assert text.startswith(shown)
    if not stop_filter.hit:
        shown += stop_filter.finish()
    ends = [text.find(stop) for stop in stops if stop in text]
    # Pieces arrive in order, so the stop string that is complete first wins; its text is cut at its beginning.
    assert stop_filter.hit == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert all(stop not in shown for stop in stops)
