"""The chain of audit records: each one's digest covers the digest of the one before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from aios_kernel.access.redaction import redacted

GENESIS: Final = hashlib.sha256(b"aios audit 1").digest()
_MAX_TEXT = 1024


class AuditEntry(NamedTuple):
    """What one syscall was and how it ended, before it has its place in the chain."""

    time_s: float
    principal: str
    agent: str
    program: str
    syscall: str
    resource: str
    outcome: str
    queued_s: float
    ran_s: float


class Link(NamedTuple):
    """A place in the chain: how many records there are up to it, and the digest of the last."""

    seq: int
    digest: bytes


START: Final = Link(0, GENESIS)


def lengthen(entries: Sequence[AuditEntry], last: Link) -> tuple[list[tuple[Any, ...]], Link]:
    """Rows for the database, `(seq, *entry, digest)`, and the new end of the chain."""
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        values = _clean(entry)
        last = Link(last.seq + 1, next_digest(last.digest, last.seq + 1, values))
        rows.append((last.seq, *values, last.digest))
    return rows, last


def next_digest(digest: bytes, seq: int, values: Iterable[Any]) -> bytes:
    """SHA-256 over the digest before and what a record says."""
    return hashlib.sha256(digest + msgspec.msgpack.encode((seq, *values))).digest()


def _clean(entry: AuditEntry) -> list[float | str]:
    """The values as SQLite will give them back: finite floats, valid and bounded text; and no secrets."""
    return [_number(value) if isinstance(value, (int, float)) else _text(str(value)) for value in entry]


def _number(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _text(value: str) -> str:
    # Redacted before it is cut to size, or half a secret would remain; but nobody's novel is searched through.
    return redacted(value[: 4 * _MAX_TEXT])[:_MAX_TEXT].encode(errors="backslashreplace").decode()
