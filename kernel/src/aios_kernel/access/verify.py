"""Whether an audit log is as it was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import apsw

from aios_kernel.access.chain import START, Link, next_digest
from aios_kernel.access.seals import Seal, unsealed

GAP = "audit.gap"
"""A record of this name says that the log did not end where it was sealed when the kernel was started."""


class Verdict(NamedTuple):
    """What verification found.

    Attributes:
        ok: nothing.
        records: how many there are.
        bad_seq: the first record at which the log does not hold.
        why: in words; empty when `ok`.
    """

    ok: bool
    records: int
    bad_seq: int | None = None
    why: str = ""


def verify(db: apsw.Connection, heads: Iterable[Seal | None], lasting: Iterable[Seal]) -> Verdict:
    """Recompute the whole chain (about 300,000 records a second) and compare it with its seals.

    Args:
        db: the log, in a transaction.
        heads: newest seals of which one must fit: the log may grow while it is read.
        lasting: seals of older places.
    """
    sealed = {link.seq: link.digest for seal in lasting for link in seal.ends()}
    end, gap, broken = _walk(db, sealed)
    if broken:
        return Verdict(False, end.seq, end.seq + 1, broken)
    beyond = [seq for seq in sealed if seq > end.seq]
    if beyond:
        return Verdict(False, end.seq, end.seq + 1, f"records up to {max(beyond)} were sealed and are gone")
    if wrong := _ending(db, end, list(heads)):
        return Verdict(False, end.seq, *wrong)
    if gap:
        return Verdict(False, end.seq, *gap)
    return Verdict(True, end.seq)


def _walk(db: apsw.Connection, sealed: dict[int, bytes]) -> tuple[Link, tuple[int, str] | None, str]:
    """The end up to which the chain holds, the first gap that it tells of, and why it goes no further."""
    end, gap = START, None
    for row in db.execute("SELECT * FROM audit ORDER BY seq"):
        link = Link(end.seq + 1, next_digest(end.digest, end.seq + 1, row[1:-1]))
        if (row[0], row[-1]) != link:
            return end, gap, f"record {link.seq} was changed, removed or moved"
        if sealed.get(link.seq, link.digest) != link.digest:
            return end, gap, f"record {link.seq} is not the one that was sealed"
        if row[5] == GAP and gap is None:
            gap = link.seq, f"record {link.seq} tells of a gap: {row[7]}"
        end = link
    return end, gap, ""


def _ending(db: apsw.Connection, end: Link, heads: list[Seal | None]) -> tuple[int, str] | None:
    row = db.execute("SELECT seq, digest FROM head").fetchone()
    noted = Link(int(row[0]), bytes(row[1])) if row else START
    if noted != end:
        return min(noted.seq, end.seq) + 1, f"the log's own head names record {noted.seq}, but it ends at {end.seq}"
    wrong = [unsealed(end, head) for head in heads]
    if not all(wrong):
        return None
    sealed = heads[-1].after[0] if heads[-1] else 0
    return min(sealed, end.seq) + 1, wrong[-1]
