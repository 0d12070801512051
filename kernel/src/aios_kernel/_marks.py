"""The mark of untrusted content on a note, in its metadata: it lies, moves, is exported and restored with the note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TAINT = "aios.taint"
"""The metadata key; its value is a list of sources, such as `tool/web_fetch`."""


def sources_in(metadata: Mapping[str, Any]) -> list[str]:
    """Where untrusted content in a note with this metadata comes from."""
    value = metadata.get(TAINT)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def marked(metadata: dict[str, Any], taint: Iterable[str]) -> dict[str, Any]:
    """The metadata with these sources besides those that it has."""
    sources = list(dict.fromkeys([*sources_in(metadata), *taint]))
    return {**metadata, TAINT: sources} if sources else metadata


def updated(old: Mapping[str, Any], new: dict[str, Any] | None, taint: Iterable[str]) -> dict[str, Any] | None:
    """What an update makes of metadata: a mark stays, whatever is written over it; None: nothing changes."""
    sources = [*sources_in(old), *taint]
    if new is None:
        return None if sources == sources_in(old) else marked(dict(old), sources)
    return marked(new, sources)
