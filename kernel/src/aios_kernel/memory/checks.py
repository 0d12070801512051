"""What a memory call may hold: refused by name before anything is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from aios_kernel._names import check_text, split_name
from aios_kernel.errors import InvalidRequest
from aios_kernel.memory.index import Space
from aios_kernel.memory.labels import Scalar
from aios_kernel.memory.reading import Sieve
from aios_kernel.syscalls import MemoryAdd, MemorySearch

MAX_TEXT: Final = 8 * 1024 * 1024
_MAX_K: Final = 1_000_000
_MAX_NAME: Final = 500


def check_space(principal: str, namespace: str) -> Space:
    """A space by its names; raises `InvalidRequest`, as all functions here."""
    split_name(namespace, "namespace")
    return Space(principal, namespace)


def check_id(id: str) -> str:
    """A note's id."""
    if not id:
        raise InvalidRequest("a note's id is empty", fix="leave it out to get one")
    return check_text(id, "note id")


def check_note(text: str) -> str:
    """A note's text, or a query."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text contains half a surrogate pair", fix="send valid Unicode") from error
    if size > MAX_TEXT:
        raise InvalidRequest(f"the text has {size:,} bytes; a note holds {MAX_TEXT:,}", fix="split the text")
    return text


def check_add(call: MemoryAdd) -> None:
    """What stands beside the text of a new note."""
    check_note(call.text)
    if call.supersedes is not None:
        check_id(call.supersedes)
        if call.supersedes == call.id:
            raise InvalidRequest("a note cannot supersede itself", fix="leave out supersedes: the id alone replaces it")
    if call.source is not None and not 0 < len(check_note(call.source)) <= _MAX_NAME:
        raise InvalidRequest("the source is empty or too long", fix=f"name it in at most {_MAX_NAME} characters")
    for name, value in (("time_s", call.time_s), ("ttl_s", call.ttl_s)):
        if value is not None and not math.isfinite(value):
            raise InvalidRequest(f"{name} is {value}", fix="give seconds as a finite number")
    if call.ttl_s is not None and call.ttl_s <= 0:
        raise InvalidRequest(f"ttl_s is {call.ttl_s:g}", fix="give a positive number of seconds")


def check_search(call: MemorySearch, now_s: float) -> tuple[int, Sieve]:
    """How many notes are asked for, and which."""
    if call.k < 1:
        raise InvalidRequest(f"k is {call.k}", fix="ask for at least one note")
    if call.half_life_s is not None and not (call.half_life_s > 0 and math.isfinite(call.half_life_s)):
        raise InvalidRequest(f"half_life_s is {call.half_life_s}", fix="give a positive number of seconds")
    since = -math.inf if call.since_s is None else call.since_s
    until = math.inf if call.until_s is None else call.until_s
    if math.isnan(since) or math.isnan(until):
        raise InvalidRequest("since_s or until_s is not a number", fix="give seconds since 1970")
    if call.author is not None:
        check_note(call.author)
    after = None if call.after is None else check_id(call.after)
    return min(call.k, _MAX_K), Sieve(now_s, _check_filter(call.filter), call.author, since, until, after)


def _check_filter(labels: Mapping[str, Any]) -> Mapping[str, Scalar]:
    for key, value in labels.items():
        if not isinstance(value, str | int | float | bool):
            raise InvalidRequest(f"the filter on {key[:80]!a} is no scalar", fix="use a string, a number or a boolean")
        check_note(key)
    return labels
