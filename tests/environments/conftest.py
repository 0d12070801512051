"""A kernel of this environment with its HTTP front, for what runs in others; and the group that is to be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.client import Client, connect
from aios_kernel.config import load, token_file_of
from aios_kernel.syscalls import KernelInfo, KernelPs, KernelShutdown, KernelStatus, ProgramInfo, Programs

HERE = Path(__file__).parent
GROUPS: dict[str, Any] = tomllib.loads((HERE / "groups.toml").read_text())
MOST_OPEN_CALLS = 8
collect_ignore = ["sdk", "frameworks"]  # run in other environments, by the tests here


@dataclass(frozen=True, slots=True)
class Group:
    """One of the groups, and where it is installed."""

    name: str
    python: str
    agents: list[str] = field(default_factory=list[str])
    sdk: bool = False
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """What its frameworks must be told beside where the kernel is."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each agent of the group, and one for each group with the SDK."""
    group = GROUPS.get(os.environ.get("OUTSIDE_GROUP", ""), {})
    if "agent" in metafunc.fixturenames:
        metafunc.parametrize("agent", group.get("agents", []))


@pytest.fixture(scope="session")
def group() -> Group:
    """The group that nox has installed."""
    name, python = os.environ.get("OUTSIDE_GROUP"), os.environ.get("OUTSIDE_PYTHON")
    if not name or not python:
        pytest.skip("needs an environment of its own: make test-environments")
    wanted = GROUPS[name]
    (site,) = Path(python).parents[1].glob("lib/python3.*/site-packages")
    variables = {key: text.replace("SITE", str(site)) for key, text in wanted.get("variables", {}).items()}
    return Group(name, python, wanted.get("agents", []), wanted.get("sdk", False), variables)


@dataclass(frozen=True, slots=True)
class Front:
    """The running kernel: where it listens, its token, and a look at it from inside."""

    url: str
    token: str
    client: Client

    def environment(self, agent: str, folder: Path, **others: str) -> dict[str, str]:
        """All that an agent's process is told."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_BASE": f"{self.url}/v1",
            "OPENAI_API_KEY": f"{self.token}:{agent}",
            "AIOS_MAX_OPEN_CALLS": str(MOST_OPEN_CALLS),
            **others,
        }

    def rows(self, agent: str) -> list[ProgramInfo]:
        """The programs of an agent."""
        answer = self.client.call(KernelPs())
        assert isinstance(answer, Programs)
        return [row for row in answer.programs if row.agent == agent]


@pytest.fixture(scope="session")
def front(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Generator[Front, None, None]:
    """`aios serve` with the fake engine, in a process of this environment."""
    settings = {
        "AIOS_HOME": str(tmp_path_factory.mktemp("aios")),
        "AIOS_EMBEDDER": "hash",
        "AIOS_VECTORS": "exact",
        "AIOS_MAX_OPEN_CALLS": str(MOST_OPEN_CALLS),
    }
    aios = Path(sys.executable).with_name("aios")
    command = [str(aios), "serve", "fake", "--http", "127.0.0.1:0"]
    serving = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    assert serving.stdout.readline().startswith("serving fake")
    config = load({"home": settings["AIOS_HOME"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_HOME", settings["AIOS_HOME"])
        connection = connect(config, client="watcher")
        client = Client(connection)
        status = client.call(KernelInfo())
        assert isinstance(status, KernelStatus)
        yield Front(str(status.http), token_file_of(config).read_text(), client)
        client.call(KernelShutdown())
        connection.close()
    serving.wait(timeout=20)
    serving.stdout.close()


@pytest.fixture(scope="session")
def record(group: Group) -> Generator[Callable[[dict[str, Any]], None], None, None]:
    """Keeps what was seen; with OUTSIDE_REPORT it is written there, beside what other groups have written."""
    seen: list[dict[str, Any]] = []
    yield seen.append
    report = os.environ.get("OUTSIDE_REPORT")
    if report and seen:
        path = Path(report)
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        names = {row["agent"] for row in seen}
        rows = sorted([*(row for row in rows if row["agent"] not in names), *seen], key=lambda row: row["agent"])
        path.write_text(
            json.dumps({"command": "make test-environments REPORT=docs/frameworks.json", "rows": rows}, indent=1) + "\n"
        )
