"""The trace drawn and exported: structure, escaping, waits and marks; then from a kernel that really swapped."""

from __future__ import annotations

import asyncio
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aios_adapters as aios
from aios_adapters import _kernel
from aios_adapters.cli.gantt import gantt, waits, write_gantt
from aios_adapters.cli.perfetto import write_perfetto
from aios_kernel.client import Client, connect, stop_in_process
from aios_kernel.config import load
from aios_kernel.syscalls import KernelTrace, LlmChat, Mark, Message, Span, Trace

NASTY = "<script>alert('x')</script>\"&amp;]]>"
SPANS = [
    Span("p1", "writer", "openai", "llm.chat", "m", "ok", 10.0, 11.0, 15.0, 100, 64, 9, 0,
         [Mark(10.0, "queued", "3 open"), Mark(12.0, "preempt"), Mark(13.0, "restore"), Mark(10.5, "cut", "20 gone")]),
    Span("p2", "reader", "", "tool.run", "look", "ok", 12.0, 12.0, 14.0),
]  # fmt: skip


class Page(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def drawing(html: str) -> ET.Element:
    """The chart, which must be well-formed by itself."""
    start = html.index("<svg xmlns")
    return ET.fromstring(html[start : html.index("</svg>", start) + 6])


def titled(root: ET.Element, text: str) -> list[ET.Element]:
    name = "{http://www.w3.org/2000/svg}title"
    return [item for item in root.iter() if any(text in (title.text or "") for title in item.findall(name))]


def test_waits_are_before_the_start_and_between_preemption_and_return() -> None:
    assert waits(SPANS[0]) == [(10.0, 11.0, "waiting for the model: 3 open"), (12.0, 13.0, "swapped out")]
    assert waits(SPANS[1]) == []


def test_the_chart_has_rows_bars_waits_and_marks() -> None:
    root = drawing(gantt(SPANS))
    hatched = [item for item in root.iter() if item.get("fill") == "url(#wait)"]
    assert len(hatched) == 2
    (ran,) = [item for item in titled(root, "llm.chat m") if item.get("fill", "").startswith("#")]
    (paused, *_) = titled(root, "swapped out\nllm.chat")
    assert float(ran.get("x", "")) < float(paused.get("x", "")) < float(ran.get("x", "")) + float(ran.get("width", ""))
    assert float(paused.get("width", "")) == pytest.approx(1400 / 5)
    assert [item.text for item in titled(root, "preempted") + titled(root, "restored")] == ["▼", "▲"]
    assert [item.text for item in titled(root, "20 gone")] == ["✂"]
    (writer,), (reader,) = titled(root, "writer (openai): program p1"), titled(root, "reader: program p2")
    assert float(writer.get("y", "")) < float(reader.get("y", ""))


def test_moves_of_parked_contexts_are_moments_without_a_bar(tmp_path: Path) -> None:
    moved = Span(
        "p1", "a", "", "context.swap_out", "64 tokens", "ok", 3.0, 3.0, 3.0, marks=[Mark(3.0, "swap_out", "64")]
    )
    (mark,) = titled(drawing(gantt([moved])), "parked KV swapped out")
    assert mark.text == "▽"
    assert not [item for item in drawing(gantt([moved])).iter() if item.get("height") == "14"]
    assert [(event["ph"], event["name"]) for event in exported([moved], tmp_path / "t.json")][1:] == [("i", "swap_out")]


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = Page(gantt(SPANS))
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not [name for _, attributes in page.elements for name in attributes if name in {"src", "href"}]


@given(st.text(max_size=30), st.sampled_from(["agent", "framework", "detail", "program", "mark"]))
def test_no_name_escapes_its_place(text: str, place: str) -> None:
    name = NASTY + "".join(letter for letter in text if letter.isprintable())
    fields: dict[str, Any] = {"program": "p", "agent": "a", "framework": "f", "detail": "d"} | (
        {} if place == "mark" else {place: name}
    )
    marks = [Mark(1.5, "cut", name if place == "mark" else "")]
    span = Span(**fields, syscall="llm.chat", outcome="ok", queued_s=1.0, started_s=1.2, ended_s=2.0, marks=marks)
    html = gantt([span])
    plain = gantt([Span("p", "a", "f", "llm.chat", "d", "ok", 1.0, 1.2, 2.0, marks=[Mark(1.5, "cut", "")])])
    assert [tag for tag, _ in Page(html).elements] == [tag for tag, _ in Page(plain).elements]
    drawing(html)
    assert "<script" not in html


def test_an_empty_trace() -> None:
    html = gantt([])
    assert "Nothing was traced yet" in html
    drawing(html)


def test_a_thousand_spans_stay_small(tmp_path: Path) -> None:
    spans = [Span(f"p{n % 50}", "a", "", "llm.chat", "", "ok", n, n + 0.5, n + 1.0) for n in range(1000)]
    write_gantt(spans, tmp_path / "trace.html")
    html = (tmp_path / "trace.html").read_text()
    assert len(titled(drawing(html), "llm.chat")) == 2000
    assert len(html) < 1_000_000


def exported(spans: list[Span], path: Path) -> list[dict[str, Any]]:
    write_perfetto(spans, path)
    return json.loads(path.read_text())["traceEvents"]


def test_perfettos_events(tmp_path: Path) -> None:
    """Trace Event Format: every event has its phase's fields, slices of a track nest, instants have a scope."""
    events = exported(SPANS, tmp_path / "trace.json")
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        assert event["ph"] in {"M", "X", "i"}
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0
        assert event["ph"] != "i" or event["s"] == "t"
    slices = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    for one in slices:
        for other in slices:
            apart = one["ts"] + one["dur"] <= other["ts"] or other["ts"] + other["dur"] <= one["ts"]
            inside = one["ts"] <= other["ts"] and other["ts"] + other["dur"] <= one["ts"] + one["dur"]
            outside = other["ts"] <= one["ts"] and one["ts"] + one["dur"] <= other["ts"] + other["dur"]
            assert apart or inside or outside
    assert [event["name"] for event in events if event["ph"] == "i"] == ["preempt", "restore", "cut"]
    assert [event["args"]["reason"] for event in events if event["name"] == "waiting"][1] == "swapped out"
    assert exported([], tmp_path / "empty.json") == []


async def test_a_kernel_that_swaps_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"KERNEL": "inprocess", "HOME": str(tmp_path / "aios"), "MODEL": "fake", "EMBEDDER": "hash"}
    settings |= {"VECTORS": "exact", "POLICY": "round_robin", "KV_TOKENS": "256"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AIOS_{name}", value)

    @aios.agent(name=NASTY)
    async def think() -> str:
        scope = aios.current()
        assert scope is not None
        return (await scope.achat(LlmChat(messages=[Message("user", "think 120")]))).text

    config = load()
    connection = connect(config, client="test-handle")
    try:
        answers = await asyncio.gather(*(think() for _ in range(6)))
        trace = await asyncio.to_thread(Client(connection).call, KernelTrace())
    finally:
        connection.close()
        _kernel.close_links()
        stop_in_process(config)
    assert {answer.split()[-1] for answer in answers} == {"w119"}
    assert isinstance(trace, Trace)
    chats = [span for span in trace.spans if span.syscall == "llm.chat"]
    marks = [mark.kind for span in chats for mark in span.marks]
    assert marks.count("preempt") == marks.count("restore") > 0
    for span in chats:
        assert [mark.at_s for mark in span.marks] == sorted(mark.at_s for mark in span.marks)
        assert all(span.queued_s <= mark.at_s <= span.ended_s for mark in span.marks)
        waited = sum(end_s - start_s for start_s, end_s, _ in waits(span))
        assert 0 <= waited <= span.ended_s - span.queued_s
    html = gantt(trace.spans)
    assert len(titled(drawing(html), "preempted")) == marks.count("preempt")
    events = exported(trace.spans, tmp_path / "trace.json")
    assert sum(event["name"] == "restore" for event in events) == marks.count("restore")
