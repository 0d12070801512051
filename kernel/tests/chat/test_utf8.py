"""Bytes to characters, however they are cut."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from aios_kernel.chat.utf8 import Utf8Decoder, decode

BYTES = st.binary(max_size=30) | st.lists(
    st.sampled_from(
        [b"a", "é".encode(), "你".encode(), "🙂".encode(), b"\xed\xa0\x80", b"\xe2\x82", b"\x80", b"\xff", b"\xc0\xaf"]
    )
).map(b"".join)


def pieces(data: bytes, cuts: list[int]) -> list[str]:
    decoder, places = Utf8Decoder(), sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    parts = [data[low:high] for low, high in itertools.pairwise(places)]
    return [*(decoder.push(part) for part in parts), decoder.finish()]


@given(BYTES, st.lists(st.integers(0, 30)))
def test_cuts_do_not_matter(data: bytes, cuts: list[int]) -> None:
    assert "".join(pieces(data, cuts)) == decode(data) == "".join(pieces(data, list(range(len(data)))))


@given(st.text(max_size=20), st.lists(st.integers(0, 60)))
def test_text_comes_back_and_no_character_is_split(text: str, cuts: list[int]) -> None:
    told = pieces(text.encode(errors="replace"), cuts)
    assert "".join(told) == text.encode(errors="replace").decode()
    assert "\ufffd" not in "".join(told) or "\ufffd" in text


def test_what_is_no_character_counts_as_one() -> None:
    """Half a surrogate pair and an overlong form have the length that their lead byte announces."""
    assert decode(b"a\xed\xa0\x80b\xc0\xafc") == "a\ufffdb\ufffdc"
    assert decode(b"\x80\x80") == "\ufffd\ufffd"
    assert decode(b"\xe2\x82a") == "\ufffda"
    assert decode(b"\xf0\x9f\x99") == "\ufffd"
