"""Rules for slash-separated names: resources, namespaces and file paths."""

from __future__ import annotations

import re

from aios_kernel.errors import InvalidRequest

MAX_PART_BYTES = 255
MAX_NAME_BYTES = 1024

_BAD_CHARACTER = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def check_text(text: str, what: str) -> str:
    """Return `text` if it is short enough and free of control characters; raise `InvalidRequest` otherwise."""
    if _BAD_CHARACTER.search(text):
        raise InvalidRequest(
            f"{what} {shown(text)} contains a control character or half a surrogate pair",
            fix="use printable characters only",
        )
    if len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidRequest(f"{what} {shown(text)} is longer than {MAX_NAME_BYTES} bytes", fix="choose a shorter name")
    return text


def split_name(text: str, what: str) -> list[str]:
    """Split a name such as `agent/alice/notes` into its parts.

    Args:
        text: the name; its parts must not be empty, `.` or `..`, nor longer than 255 bytes each.
        what: how errors call it, such as "resource".

    Raises:
        InvalidRequest: the name breaks a rule, so that no two spellings mean one thing.
    """
    parts = check_text(text, what).split("/")
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidRequest(
                f"{what} {shown(text)} has a part that is empty, '.' or '..'",
                fix="write plain names with single slashes between them",
            )
        if len(part.encode()) > MAX_PART_BYTES:
            raise InvalidRequest(f"{what} {shown(text)} has a part longer than {MAX_PART_BYTES} bytes")
    return parts


def shown(text: str) -> str:
    """A name as errors show it: quoted, escaped and cut."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")
