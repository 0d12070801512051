"""The trace as Chrome trace-event JSON, which Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from aios_adapters.cli.gantt import waits
from aios_kernel.syscalls import Mark, Span


def write_perfetto(spans: Iterable[Span], path: Path) -> None:
    """One track a program; waits and runs are slices, moves of KV instants. Times in us (Trace Event Format)."""
    events: list[dict[str, Any]] = []
    tracks: dict[str, int] = {}
    for span in spans:
        if span.program not in tracks:
            tracks[span.program] = len(tracks) + 1
            events.append(_named(tracks[span.program], span))
        events.extend(_slices(tracks[span.program], span))
    path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}))


def _named(track: int, span: Span) -> dict[str, Any]:
    name = f"{span.agent} ({span.framework})" if span.framework else span.agent
    return {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}}


def _slices(track: int, span: Span) -> list[dict[str, Any]]:
    common = {"ph": "X", "pid": 1, "tid": track, "cat": span.syscall.partition(".")[0]}
    args = {
        name: getattr(span, name) for name in ("detail", "outcome", "prompt_tokens", "cached_tokens", "diverged_tokens")
    }
    args["completion_tokens"] = span.completion_tokens
    if span.syscall.startswith("context."):
        return [_moment(track, mark) for mark in span.marks]
    slices = [_slice(common, span.syscall, span.started_s, span.ended_s) | {"args": args}]
    for start_s, end_s, why in waits(span):
        waiting = _slice(common, "waiting", start_s, end_s) | {"args": {"reason": why}}
        slices.insert(0 if end_s <= span.started_s else len(slices), waiting)
    return slices + [_moment(track, mark) for mark in span.marks if mark.kind != "queued"]


def _moment(track: int, mark: Mark) -> dict[str, Any]:
    """An instant event of a thread."""
    return {
        "ph": "i", "s": "t", "pid": 1, "tid": track, "cat": "kv", "name": mark.kind, "ts": mark.at_s * 1e6,
        "args": {"detail": mark.detail},
    }  # fmt: skip


def _slice(common: dict[str, Any], name: str, start_s: float, end_s: float) -> dict[str, Any]:
    return common | {"name": name, "ts": start_s * 1e6, "dur": max(0.0, end_s - start_s) * 1e6}
