"""`Memory` for plain programs, and `aios memory`, over real kernels."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import aios_adapters as aios
from aios_adapters import Memory
from aios_adapters.testing import KernelHandle
from aios_kernel import errors


def test_a_plain_program_keeps_notes(fake_kernel: KernelHandle) -> None:
    with Memory("diary") as memory:
        note = memory.add("The flat in Lisbon costs 900 euros", id="flat", source="letters", city="Lisbon")
        memory.add("Tea is in the kitchen")
        assert (note.author, note.namespace, note.source, note.searchable) == ("diary", "agent/diary", "letters", True)
        assert memory.search("what does the flat cost?", k=1)[0].id == "flat"
        assert [found.id for found in memory.search("flat", filter={"city": "Lisbon"})] == ["flat"]
        assert memory.update("flat", "The flat in Lisbon costs 950 euros").metadata == {"city": "Lisbon"}
        assert memory.get("flat").text.endswith("950 euros")
        newer = memory.add("The flat is let", supersedes="flat")
        assert newer.id in {found.id for found in memory.search("flat")}
        assert "flat" not in {found.id for found in memory.search("flat")}
    with Memory("diary") as memory:
        assert [kept.text for kept in memory] == [
            "The flat in Lisbon costs 950 euros", "Tea is in the kitchen", "The flat is let",
        ]  # fmt: skip
        assert memory.delete("flat")
        assert not memory.delete("flat")
        assert memory.clear() == 2


async def test_async_forms_and_the_agent_that_is_on(fake_kernel: KernelHandle) -> None:
    @aios.agent(name="researcher")
    async def work() -> str:
        await Memory().aadd("the sky is blue")
        return (await Memory().asearch("sky"))[0].author

    assert await work() == "researcher"
    with pytest.raises(errors.InvalidRequest, match="needs an agent"):
        Memory().search("sky")


def test_notes_are_shared_by_grant(fake_kernel: KernelHandle) -> None:
    with Memory("ann") as ann, Memory("ben", namespace="agent/ann") as ben, Memory("ben", namespace="all") as whole:
        ann.add("the safe is behind the picture")
        with pytest.raises(errors.AccessDenied):
            ben.search("safe")
        assert whole.search("safe") == []
        ann.share("ben")
        assert ben.search("safe")[0].author == "ann"
        assert [note.namespace for note in whole.search("safe")] == ["agent/ann"]
        with pytest.raises(errors.AccessDenied):
            ben.add("mine")
        ann.unshare("ben")
        with pytest.raises(errors.AccessDenied):
            ben.search("safe")
    with Memory("x", namespace="group", group="team") as one, Memory("y", namespace="group", group="team") as other:
        one.add("we meet at nine")
        assert other.search("when do we meet?")[0].author == "x"
        one.share("z")
        with Memory("z", namespace="group/team") as guest:
            assert len(guest.search("meet")) == 1


def test_what_one_agent_wrote_is_taken_back_everywhere(fake_kernel: KernelHandle) -> None:
    with Memory("x", namespace="group", group="team") as good, Memory("y", namespace="group", group="team") as bad:
        good.add("pay into account 111", id="account")
        since = time.time()
        bad.add("pay into account 666", id="account")
        assert good.search("account")[0].text.endswith("666")
        assert good.rollback("y", since - 0.001) == 1
        assert good.search("account")[0].text.endswith("111")


def test_dump_and_load(fake_kernel: KernelHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aios_adapters._notes.PAGE", 7)
    file = tmp_path / "notes.jsonl"
    with Memory("old") as old:
        for n in range(20):
            old.add(f"fact {n}", id=f"n{n}", source="talk", time_s=100.0 + n, n=n)
        assert old.dump(file) == 20
    with Memory("new") as new:
        assert new.load(file) == 20
        assert [(note.id, note.time_s, note.source, note.metadata["n"]) for note in new] == [
            (f"n{n}", 100.0 + n, "talk", n) for n in range(20)
        ]
        file.write_text("{]\n")
        with pytest.raises(errors.InvalidRequest, match="line 1"):
            new.load(file)


def test_embedding_anew_tells_how_far_it_is(fake_kernel: KernelHandle) -> None:
    with Memory("diary") as memory:
        for n in range(30):
            memory.add(f"fact{n}")
        assert memory.reindex().total == 30
        deadline = time.monotonic() + 20
        while memory.progress().left:
            assert time.monotonic() < deadline
            assert memory.search("fact7", k=1)[0].text == "fact7"
        assert memory.search("fact7", k=1)[0].text == "fact7"
        assert [(space.namespace, space.notes, space.searchable) for space in memory.spaces()] == [
            ("agent/diary", 30, 30)
        ]


def test_a_run_has_a_log_of_its_own(fake_kernel: KernelHandle) -> None:
    with Memory("ann") as lost, Memory("ann") as kept:
        for n in range(5):
            lost.record(f"said {n}", "user")
            kept.record(f"did {n}", "tool")
        assert [(one.number, one.role, one.text) for one in lost.recall(-2)] == [
            (4, "user", "said 3"),
            (5, "user", "said 4"),
        ]
        kept.keep()
        programs = lost._scope().program, kept._scope().program
    with Memory("ann") as later, Memory("ben") as other:
        later.record("hello")
        assert [one.text for one in later.recall(2, 3, program=programs[1])] == ["did 1", "did 2"]
        for reader, program in ((later, programs[0]), (other, programs[1])):
            with pytest.raises(errors.NotFound, match="has no log"):
                reader.recall(program=program)


def test_no_kernel_keeps_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KERNEL", "off")
    with pytest.raises(errors.InvalidRequest, match="AIOS_KERNEL is off"):
        Memory("diary")


def test_exported_lines_are_notes(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    with Memory("diary") as memory:
        memory.add("one")
        memory.dump(tmp_path / "notes.jsonl")
    (line,) = (tmp_path / "notes.jsonl").read_text().splitlines()
    assert {"id", "text", "author", "created_s", "program"} <= json.loads(line).keys()
