"""What lives in other environments, unchanged, against a kernel of this one: by environment variables alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
VERSIONS = """
import importlib.metadata, json, sys
known = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
print(json.dumps({name: known[name] for name in sys.argv[1:] if name in known}))
"""
DISTRIBUTIONS = {
    "agno": "agno", "camel": "camel-ai", "crewai": "crewai", "dspy": "dspy", "google_adk": "google-adk",
    "haystack": "haystack-ai", "open_interpreter": "open-interpreter", "openai_agents": "openai-agents",
    "pydantic_ai": "pydantic-ai-slim", "semantic_kernel": "semantic-kernel", "smolagents": "smolagents",
}  # fmt: skip


def versions(python: str, *names: str) -> dict[str, str]:
    """Versions in another environment."""
    done = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_an_agent_that_knows_nothing_of_us(
    agent: str, group: Any, front: Any, tmp_path: Path, record: Callable[[dict[str, Any]], None]
) -> None:
    headers = {"OPENAI_CUSTOM_HEADERS": f"X-AIOS-Priority: interactive\nX-AIOS-Program: {agent}-1"}
    for name, others in (("plain", group.variables), ("headers", group.variables | headers)):
        script = HERE / "frameworks" / f"{agent}_agent.py"
        done = subprocess.run(
            [group.python, str(script)], cwd=tmp_path, env=front.environment(f"{agent}-{name}", tmp_path, **others),
            capture_output=True, text=True, timeout=140, check=False,
        )  # fmt: skip
        said = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(said) == 1, done.stdout + done.stderr
        assert "12.5" in said[0], "the tool has run, and the model has been told"
        assert front.token not in done.stdout + done.stderr
    (row,) = front.rows(f"{agent}-plain")
    assert (row.framework, row.priority) == ("http", "normal")
    assert row.llm_calls >= 2
    assert row.completion_tokens > 0
    (told,) = front.rows(f"{agent}-headers")
    assert told.priority == "interactive"
    assert told.program.startswith(f"{agent}-1.")
    record(
        {
            "agent": agent,
            "group": group.name,
            "versions": versions(group.python, DISTRIBUTIONS[agent], "openai"),
            "llm_calls": row.llm_calls,
            "named_by_key": True,
            "priority_and_program_by_header": True,
        }
    )


@pytest.mark.timeout(300)
def test_the_openai_sdk(group: Any, front: Any, tmp_path: Path, record: Callable[[dict[str, Any]], None]) -> None:
    if not group.sdk:
        pytest.skip("this group has no SDK tests")
    suite = HERE / "sdk"
    command = [group.python, "-m", "pytest", "-c", str(suite / "pytest.ini"), "--confcutdir", str(suite), str(suite)]
    environment = front.environment("sdk", tmp_path, PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = done.stdout.strip().splitlines()[-1].partition(" in ")[0]
    assert [len(front.rows(name)) for name in ("writer", "critic")] == [1, 1]
    assert front.rows("writer")[0].llm_calls == 2
    assert all(row.state == "idle" for row in front.rows("sdk")), "what timed out or was cancelled runs no more"
    record(
        {
            "agent": f"openai-sdk-{group.name}",
            "group": group.name,
            "versions": versions(group.python, "openai", "httpx", "httpx2"),
            "tests": outcome,
        }
    )
