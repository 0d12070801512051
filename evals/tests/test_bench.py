"""The benches' own machinery: reports, comparison, workloads, the Python tool, the baseline against the engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios_evals.compare import compare, worst
from aios_evals.report import load_report, report
from aios_evals.workloads.load import NAMES, pick
from aios_evals.workloads.python_tool import run_python
from aios_evals.workloads.trajectory import RecordedCall, Step, Trajectory, Turn, schema_of

DATA = os.environ.get("AIOS_DATA")
# Whole frameworks run here, and deprecate and remark as they please; our own warnings are errors in our own suites.
pytestmark = pytest.mark.filterwarnings("ignore")
needs_data = pytest.mark.skipif(not DATA, reason="the recorded workloads are no part of the project; set AIOS_DATA")


def result(**figures: float) -> dict[str, object]:
    return {"bench": "syscalls", "rows": [{"clients": 8, **figures}]}


def test_compare_knows_which_way_is_worse() -> None:
    changes = compare(result(p50_us=100.0, per_s=1000.0), result(p50_us=110.0, per_s=1100.0))
    assert {row["figure"]: round(row["worse_percent"]) for row in changes} == {"p50_us": 10, "per_s": -10}
    assert worst(changes) == pytest.approx(10)
    with pytest.raises(ValueError, match="cannot compare"):
        compare(result(), {"bench": "speedup", "rows": []})


def test_a_report_says_where_it_was_made(tmp_path: Path) -> None:
    made = report("syscalls", [{"clients": 1}])
    assert {"bench", "schema", "time", "machine", "versions", "command", "rows"} == set(made)
    assert made["machine"]["cores"] == os.cpu_count()
    broken = tmp_path / "x.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match="no bench result"):
        load_report(broken)


def test_a_schema_admits_every_recorded_call() -> None:
    schema = schema_of("f", [{"a": 1, "b": [{"c": 2}]}, {"a": 2}])
    assert schema["parameters"]["required"] == ["a"]
    assert schema["parameters"]["properties"]["b"] == {"type": "array", "items": {"type": "object"}}


def test_a_cut_keeps_whole_turns() -> None:
    call = RecordedCall("f", {}, "r")
    turns = (Turn("one", (Step("", (call,)), Step("a"))), Turn("two", (Step("b"),)), Turn("three", (Step("c"),)))
    run = Trajectory("x", "", turns)
    assert [turn.user for turn in run.cut(3).turns] == ["one", "two"]
    assert [turn.user for turn in run.cut(1).turns] == ["one"]
    assert run.steps[0].forced() == '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


async def test_the_python_tool_runs_and_is_bounded() -> None:
    assert await run_python("print(sum(range(5)))") == "10"
    assert "ZeroDivisionError" in await run_python("1/0")
    assert "MemoryError" in await run_python("x = bytearray(1 << 30)")
    assert await run_python("pass") == "[Executed Successfully with No Output]"


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_recorded_runs_end_in_text_and_name_their_tools(name: str) -> None:
    assert DATA is not None
    for run in pick(name, Path(DATA), 40, 8):
        assert run.turns
        assert all(turn.user and turn.steps and not turn.steps[-1].calls for turn in run.turns)
        assert {call.name for step in run.steps for call in step.calls} <= set(run.tools)


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", ["langchain", "autogen", "llamaindex", "openai"])
def test_every_framework_walks_the_recorded_path_alike(framework: str, tmp_path: Path) -> None:
    """Two agents, with and without the kernel: the same greedy choice at every recorded token."""
    from aios_evals.speedup.run import MODES, Plan, run

    assert DATA is not None
    plan = Plan(Path(DATA), ["mint"], [framework], 2, 3, 0.0, tmp_path, MODES, slots=1)
    rows = run(plan)
    assert [row["mode"] for row in rows] == list(MODES)
    assert all(row["identical"] == 1.0 for row in rows), rows
    assert rows[2]["snapshots"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_agents_say_the_same_with_and_without_the_kernel() -> None:
    from aios_evals.demo.exactness import run

    rows = run(1)
    assert all(row["identical"] == 1.0 for row in rows), rows
    assert rows[-1]["snapshots"] > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_users_own_agent_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aios_evals.speedup.own import run

    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    file = tmp_path / "own.py"
    file.write_text(
        "import aios_adapters as aios\nfrom openai import OpenAI\n"
        "@aios.agent(name='own')\n"
        "def main():\n"
        "    messages = [{'role': 'user', 'content': 'hello'}]\n"
        "    print(OpenAI().chat.completions.create(model='gpt-4o', messages=messages).choices[0].message.content)\n"
        "main()\n"
    )
    rows = run(file, ["generate_lock", "kernel_fifo"])
    assert [row["identical"] for row in rows] == [1.0, 1.0]
