"""Characters that a person does not see and a model reads: shown escaped, so that what is approved is what is read.

Tag characters (U+E0000 to U+E007F) spell ASCII invisibly, bidirectional controls reorder what is shown, zero-width
characters and fillers hide words within words (Boucher and Anderson, "Trojan Source", 2021).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_KEPT = "\n\t"
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks, by their category, that have no shape."""
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_PLAIN = re.compile(r"[\x20-\x7e\n\t]*")
_SPOKEN = ("description", "title", "$comment")
"""Keys of a JSON schema whose text is prose for the model; all others are matched against data."""


def visible(text: str) -> str:
    r"""The text with every character that cannot be seen written as `\u{...}`, of odd spaces too."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(f"\\u{{{ord(character):x}}}" if _unseen(character) else character for character in text)


def spelt_by_tags(text: str) -> str:
    """What a text says in tag characters, which no screen shows; empty: nothing."""
    return "".join(chr(ord(tag) - 0xE0000) for run in _TAGS.findall(text) for tag in run)


def visible_schema(value: Any) -> Any:
    """A JSON schema with the prose in it made visible; names, constants and patterns stay as they are."""
    if isinstance(value, list):
        return [visible_schema(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, dict):
        return value
    return {
        key: visible(item) if key in _SPOKEN and isinstance(item, str) else visible_schema(item)
        for key, item in value.items()  # pyright: ignore[reportUnknownVariableType]
        if isinstance(key, str)
    }


def _unseen(character: str) -> bool:
    if character in _KEPT:
        return False
    category = unicodedata.category(character)
    if category in _UNSEEN or character in _FILLERS:
        return True
    if category == "Zs":
        return character != " "
    return category == "Mn" and (0xFE00 <= ord(character) <= 0xFE0F or ord(character) >= 0xE0100)  # variation selectors
