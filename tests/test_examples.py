"""The examples of the documentation, run as their first lines say: other processes, a kernel process, no network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
AIOS = Path(sys.executable).parent / "aios"
METAGPT = Path(os.environ.get("METAGPT_PYTHON", ROOT / ".venv-metagpt" / "bin" / "python"))
CALL = 'kiwi_7\ncall lookup {"item": "kiwi_7"}\n'
"""An item whose question makes the fake model call the tool."""

pytestmark = pytest.mark.slow
needs_metagpt = pytest.mark.skipif(not METAGPT.exists(), reason="MetaGPT's environment is not made: make metagpt")


def run(tmp_path: Path, *command: object, model: str) -> list[str]:
    """The lines that a command prints, with a data directory of its own."""
    environment = os.environ | {"AIOS_HOME": str(tmp_path / "aios"), "AIOS_MODEL": model, "AIOS_GRACE_S": "0.5"}
    if model == "fake":
        environment |= {"AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    done = subprocess.run(
        [str(part) for part in command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line.rstrip() for line in done.stdout.splitlines()]


def until_gone(path: Path) -> None:
    """Wait for a file to go."""
    ends_s = time.monotonic() + 30
    while path.exists():
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def test_three_frameworks_with_plain_python(tmp_path: Path) -> None:
    lines = run(tmp_path, sys.executable, EXAMPLES / "three_frameworks.py", CALL, 4, model="fake")
    assert lines == [
        "LangChain   tool said: 12.5",
        "AutoGen     echo: Agent Anna says: tool said: 12.5 What do 4 cost?",
        "LlamaIndex  echo: Agent Bob says: the cost of Anna's order is 4. Remember it.",
        "LangChain   echo: What is the cost of Anna's order?",
    ]


def test_three_frameworks_with_aios_run(tmp_path: Path) -> None:
    lines = run(tmp_path, AIOS, "run", EXAMPLES / "three_frameworks.py", model="fake")
    table = {words[0]: words[1] for line in lines if len(words := line.split()) == 7}
    assert table == {
        "auditor": "langchain",
        "purchase/price": "langchain",
        "purchase/total": "autogen",
        "purchase/total/accountant": "autogen",
        "purchase/note": "llamaindex",
    }


def test_three_frameworks_on_the_demo_model(tmp_path: Path) -> None:
    lines = run(tmp_path, sys.executable, EXAMPLES / "three_frameworks.py", model="demo")
    assert lines == [
        "LangChain   The price of kiwi_7 is 12.5.",
        "AutoGen     4 kiwi_7 cost 50.",
        "LlamaIndex  Noted: the cost of Anna's order is 50.",
        "LangChain   I found: the cost of Anna's order is 50",
    ]


def test_a_tree_search_on_the_demo_model(tmp_path: Path) -> None:
    lines = run(tmp_path, AIOS, "run", EXAMPLES / "tree_search.py", model="demo")
    assert {lines[0], lines[1]} <= {"5 + 3 = 8", "8 * 8 = 64"}
    branches = [line.split()[0] for line in lines if line.startswith("solver/")]
    assert "solver/5+3" in branches
    assert "solver/5+3/8*8" in branches


def test_a_tree_search_that_finds_nothing_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, sys.executable, EXAMPLES / "tree_search.py", 7, 2, 2, model="demo") == ["7 cannot be reached"]


def test_replicas_of_which_one_is_killed(tmp_path: Path) -> None:
    agents, turns = 9, 8
    killed, answered, stayed, cached, again = run(
        tmp_path, sys.executable, EXAMPLES / "replicas.py", agents, turns, model="demo"
    )
    assert re.fullmatch(r"killed http://127.0.0.1:\d+/v1, at which 3 of 9 agents were", killed)
    assert re.fullmatch(r"72 of 72 calls were answered, once each; [1-3] of them moved while they were open", answered)
    assert stayed == "6 agents stayed where they were, the others went to two replicas"
    assert int(cached.split("%")[0]) >= 60
    assert again == "started again, it is taken back"
    until_gone(tmp_path / "aios" / "run" / "kernel.sock")  # the kernel has left, and written its trace
    (trace,) = (tmp_path / "aios" / "traces").glob("*.jsonl")
    spans = [json.loads(line) for line in trace.read_text().splitlines()]
    outcomes = [span["outcome"] for span in spans if span["syscall"] == "llm.chat"]
    assert outcomes == ["ok"] * (agents * turns)  # each has ended once, none with an error


@needs_metagpt
def test_metagpt_takes_part_from_its_own_environment(tmp_path: Path) -> None:
    lines = run(tmp_path, AIOS, "run", EXAMPLES / "with_metagpt.py", CALL, 4, model="fake")
    answers = [line for line in lines if line.startswith(("LangChain", "MetaGPT", "LlamaIndex"))]
    assert answers[0] == "LangChain   tool said: 12.5"
    assert answers[1].startswith("MetaGPT     4 kiwi_7")
    assert any(line.split()[:2] == ["order/total/Carl(Accountant)", "metagpt"] for line in lines)


@needs_metagpt
def test_metagpt_on_the_demo_model(tmp_path: Path) -> None:
    lines = run(tmp_path, sys.executable, EXAMPLES / "with_metagpt.py", model="demo")
    assert lines[-3:] == [
        "LangChain   The price of kiwi_7 is 12.5.",
        "MetaGPT     4 kiwi_7 cost 50.",
        "LlamaIndex  Noted: 4 kiwi_7 cost 50.",
    ]


def test_without_metagpts_environment_the_example_says_what_to_do(tmp_path: Path) -> None:
    environment = os.environ | {"METAGPT_PYTHON": str(tmp_path / "nowhere"), "AIOS_HOME": str(tmp_path)}
    command = [sys.executable, str(EXAMPLES / "with_metagpt.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fix: make metagpt" in done.stderr
