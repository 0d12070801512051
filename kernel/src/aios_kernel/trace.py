"""The trace: one span a syscall, kept in memory for `aios trace` and written behind to a file of JSON lines."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from aios_kernel.access.redaction import redacted
from aios_kernel.failpoints import failpoint
from aios_kernel.syscalls import Mark, Span

if TYPE_CHECKING:
    from aios_kernel.calls import OpenCall
    from aios_kernel.context.parking import Move
    from aios_kernel.process import Program

_KEPT = 100_000
_FLUSH_EVERY = 64
_WORTH_TELLING_S = 0.01
"""A call that waited for less needs no reason."""

_log = logging.getLogger(__name__)


class Tracer:
    """Collects spans, without secrets in them. A disk that refuses costs the file, never a syscall."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: deque[Span] = deque(maxlen=_KEPT)
        self._unwritten: list[Span] = []
        self._file: TextIO | None = None

    def add(self, span: Span) -> None:
        """Take a span that has ended."""
        span = _without_secrets(span)
        self._spans.append(span)
        self._unwritten.append(span)
        if len(self._unwritten) >= _FLUSH_EVERY:
            self.flush()

    def spans(self, programs: set[str] | None = None) -> list[Span]:
        """The spans of these programs (None: all), in the order in which they ended."""
        wanted = None if programs is None else {_shown(program) for program in programs}
        return [span for span in self._spans if wanted is None or span.program in wanted]

    def flush(self) -> None:
        """Write what has gathered."""
        unwritten, self._unwritten = self._unwritten, []
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            failpoint("trace.write")
            self._file.writelines(msgspec.json.encode(span).decode() + "\n" for span in unwritten)
            self._file.flush()
            failpoint("trace.written")
        except OSError as error:
            _log.warning("the trace cannot be written to %s: %s", self.path, error)

    def close(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        if self._file is not None:
            with contextlib.suppress(OSError):  # told by the flush; what closes after this must not be kept open by it
                self._file.close()
            self._file = None


_LONGEST = 4096
"""Characters of a detail."""
_shown = functools.lru_cache(4096)(redacted)
"""The same names come again and again; a look through one takes microseconds."""


def _without_secrets(span: Span) -> Span:
    said = (span.program, span.agent, span.framework, span.detail[:_LONGEST])
    program, agent, framework, detail = (_shown(text) for text in said)
    if (program, agent, framework, detail) == said and len(span.detail) <= _LONGEST:
        return span
    return msgspec.structs.replace(span, program=program, agent=agent, framework=framework, detail=detail)


def moved_span(program: Program, move: Move, at_s: float) -> Span:
    """A moment of a program between its calls: what its last call left in the pool was moved."""
    return Span(
        program=program.id,
        agent=program.agent,
        framework=program.framework,
        syscall=f"context.{move.kind}",
        detail=f"{move.tokens:,} tokens",
        outcome="ok",
        queued_s=at_s,
        started_s=at_s,
        ended_s=at_s,
        marks=[Mark(at_s, move.kind, f"{move.tokens:,} tokens")],
    )


def marks_of(open_call: OpenCall, started_s: float, kv_tokens: int) -> list[Mark]:
    """The moments of a call that has ended, and why it waited for the model if it did."""
    marks = open_call.marks
    if open_call.generations and started_s - open_call.opened_s >= _WORTH_TELLING_S:
        others, free = open_call.found
        why = f"{others:,} generations open, {free:,} of {kv_tokens:,} tokens of KV free"
        marks = [Mark(open_call.opened_s, "queued", why), *marks]
    return marks
