"""The trace as a Gantt chart: one static HTML file with an inline drawing, no script and nothing from the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aios_kernel.syscalls import Mark, Span

_COLOURS = {
    "llm": "#2b6cb0",
    "tool": "#c05621",
    "memory": "#2f855a",
    "storage": "#6b46c1",
    "agent": "#718096",
    "access": "#b83280",
}
_OTHER = "#4a5568"
_MARKS = {
    "preempt": ("▼", "#c53030", "preempted: swapped out"),
    "restore": ("▲", "#2f855a", "restored: swapped in"),
    "swap_out": ("▽", "#c53030", "parked KV swapped out"),
    "swap_in": ("△", "#2f855a", "parked KV swapped in"),
    "drop": ("✗", "#4a5568", "parked KV given up"),
    "cut": ("✂", "#6b46c1", "conversation cut to the window"),
    "queued": ("", "", ""),
}
_ROW, _BAR, _LEFT, _WIDTH, _TOP = 22, 14, 240, 1400, 34
_TICKS = 10
_STYLE = """
body{font:13px system-ui,sans-serif;margin:16px;color:#1a202c;background:#fff}
svg{border:1px solid #cbd5e0;max-width:none}
text{font:11px system-ui,sans-serif;fill:#1a202c}
.key{display:inline-block;margin-right:14px}
.key i{display:inline-block;width:12px;height:12px;margin-right:4px;vertical-align:-1px}
.mark{font-size:13px;font-weight:bold;paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
.scroll{overflow:auto}
"""
_HATCH = (
    '<defs><pattern id="wait" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#edf2f7"/><line x1="0" y1="0" x2="0" y2="6" stroke="#4a5568" stroke-width="2"/>'
    "</pattern></defs>"
)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Seconds to pixels."""

    began_s: float
    length_s: float

    def x(self, at_s: float) -> float:
        """Where a moment is."""
        return _LEFT + min(1.0, max(0.0, (at_s - self.began_s) / self.length_s)) * _WIDTH

    def bar(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Left edge and width; what is too short to see is a hair."""
        left = self.x(start_s)
        return left, max(0.75, self.x(end_s) - left)


def write_gantt(spans: Iterable[Span], path: Path) -> None:
    """One row a program in order of appearance: colour is the kind of syscall, hatched is waiting."""
    path.write_text(gantt(sorted(spans, key=lambda span: span.queued_s)), encoding="utf-8")


def gantt(spans: Sequence[Span]) -> str:
    """The HTML of spans in order of their beginning. Everything that agents named is escaped."""
    programs = list(dict.fromkeys(span.program for span in spans))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>aios trace</title>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<style>{_STYLE}</style></head><body>\n<h1>aios trace</h1>\n"
        f"<p>{len(programs):,} programs, {len(spans):,} spans. {'' if spans else 'Nothing was traced yet.'}</p>\n"
        f'<p>{_legend()}</p>\n<div class="scroll">\n{_drawing(spans, programs)}</div>\n</body></html>\n'
    )


def _legend() -> str:
    kinds = [f'<span class="key"><i style="background:{colour}"></i>{kind}</span>' for kind, colour in _COLOURS.items()]
    square = '<svg width="12" height="12"><rect width="12" height="12" fill="url(#wait)"/></svg>'
    hatched = f'<span class="key">{square} waiting</span>'
    marks = [
        f'<span class="key"><b style="color:{colour}">{sign}</b> {words}</span>'
        for sign, colour, words in _MARKS.values()
        if sign
    ]
    return "".join([*kinds, hatched, *marks])


def _drawing(spans: Sequence[Span], programs: Sequence[str]) -> str:
    rows = {program: _TOP + index * _ROW for index, program in enumerate(programs)}
    began = min((span.queued_s for span in spans), default=0.0)
    scale = _Scale(began, max(max((span.ended_s for span in spans), default=began) - began, 1e-6))
    height = _TOP + len(programs) * _ROW + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" role="img">{_HATCH}',
        *_axis(scale, height),
        *_names(spans, rows),
    ]
    for span in spans:
        parts += _drawn(span, rows[span.program], scale)
    return "\n".join([*parts, "</svg>\n"])


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    step_s = _round_step(scale.length_s / _TICKS)
    for tick in range(int(scale.length_s / step_s) + 1):
        at_s = step_s * tick
        x = scale.x(scale.began_s + at_s)
        yield f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height}" stroke="#e2e8f0"/>'
        yield f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle">{at_s:.6g} s</text>'


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (and 0.5, 0.2, ...) that is at least so much."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next((unit * factor for factor in (1, 2, 5) if unit * factor >= least * (1 - 1e-9)), unit * 10)


def _names(spans: Sequence[Span], rows: dict[str, int]) -> Iterator[str]:
    named: set[str] = set()
    for span in spans:
        if span.program in named:
            continue
        named.add(span.program)
        name = f"{span.agent} ({span.framework})" if span.framework else span.agent
        short = name if len(name) <= 38 else f"{name[:37]}…"
        yield (
            f'<text x="{_LEFT - 8}" y="{rows[span.program] + _BAR - 2}" text-anchor="end">{escape(short)}'
            f"<title>{escape(name)}: program {escape(span.program)}</title></text>"
        )


def _drawn(span: Span, y: int, scale: _Scale) -> Iterator[str]:
    told = escape(_told(span))
    if not span.syscall.startswith("context."):
        colour = _COLOURS.get(span.syscall.partition(".")[0], _OTHER)
        yield _box(scale.bar(span.started_s, span.ended_s), y, colour, told)
        for start_s, end_s, why in waits(span):
            yield _box(scale.bar(start_s, end_s), y, "url(#wait)", escape(f"{why}\n") + told)
    for mark in span.marks:
        sign, colour, words = _MARKS[mark.kind]
        if sign:
            title = escape(f"{words} at {mark.at_s - scale.began_s:.3f} s {mark.detail}".strip())
            place = f'x="{scale.x(mark.at_s):.1f}" y="{y + _BAR - 2}"'
            middle = f'class="mark" {place} text-anchor="middle"'
            yield f'<text {middle} style="fill:{colour}">{sign}<title>{title}</title></text>'


def waits(span: Span) -> list[tuple[float, float, str]]:
    """The times in which a call waited, and what for: before its first step, and between preemption and return."""
    found: list[tuple[float, float, str]] = []
    if span.started_s > span.queued_s:
        why = next((mark.detail for mark in span.marks if mark.kind == "queued"), "")
        found.append((span.queued_s, span.started_s, f"waiting for the model: {why}" if why else "waiting"))
    out: Mark | None = None
    for mark in sorted(span.marks, key=lambda mark: mark.at_s):
        if mark.kind == "preempt" and out is None:
            out = mark
        elif mark.kind == "restore" and out is not None:
            found.append((out.at_s, mark.at_s, "swapped out"))
            out = None
    if out is not None:
        found.append((out.at_s, span.ended_s, "swapped out until the end"))
    return found


def _box(bar: tuple[float, float], y: int, fill: str, title: str) -> str:
    left, width = bar
    return (
        f'<rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" fill="{fill}"><title>{title}</title></rect>'
    )


def _told(span: Span) -> str:
    """A span in words, for its tooltip."""
    lines = [
        f"{span.syscall} {span.detail}".strip(),
        f"{span.agent}: {span.outcome}",
        f"waited {span.started_s - span.queued_s:.3f} s, ran {span.ended_s - span.started_s:.3f} s",
    ]
    if span.prompt_tokens:
        lines.append(f"prompt {span.prompt_tokens:,} ({span.cached_tokens:,} cached), new {span.completion_tokens:,}")
    return "\n".join(lines)
