"""A whole kernel with confined tools: from the tools file to the audit log; and the whole suite as another user."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.errors import AiosError, ConfigError, ToolError, Unsupported
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import AccessAudit, AgentSpawn, AuditRecords, ToolInvoke, ToolOutput
from aios_kernel.tools.isolation.container import Container

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parents[3]
NOBODY = 65534

TOOLS = """
[commands.look]
argv = ["cat", "--", "{path}"]
parameters = {type = "object", properties = {path = {type = "string"}}, required = ["path"]}
isolation = "LEVEL"
confinement = {read = ["PLACE"], processes = 8, memory_mb = 256}

[commands.plain]
argv = ["echo", "hello"]

[python.add]
function = "functions:add"
parameters = {type = "object", properties = {a = {type = "integer"}}, required = ["a"]}
isolation = "LEVEL"
"""


@pytest.mark.parametrize("level", ["subprocess", "sandbox", "container"])
def test_confined_tools_of_a_kernel(
    level: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(f"has_{level}")
    monkeypatch.syspath_prepend(str(HERE))
    place = HERE / "functions.py"
    (tmp_path / "tools.toml").write_text(TOOLS.replace("LEVEL", level).replace("PLACE", str(place)))
    config = Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    with contextlib.closing(InProcessKernel(config).connect("tester")) as connection:
        client = Client(connection)
        client.call(AgentSpawn(program="p", agent="a"))

        def call(name: str, arguments: str = "{}") -> str:
            answer = client.call(ToolInvoke(name=name, arguments=arguments), program="p")
            assert isinstance(answer, ToolOutput)
            return answer.content

        assert call("look", f'{{"path": "{place}"}}') == place.read_text()
        with pytest.raises(ToolError, match=r"ended with exit status 1: .*cat: .*(Permission denied|No such file)"):
            call("look", f'{{"path": "{tmp_path}/tools.toml"}}')
        assert call("add", '{"a": 41}') == '{"sum":42}'
        assert call("plain") == "hello\n"
        records = client.call(AccessAudit(limit=10), program="p")
        assert isinstance(records, AuditRecords)
        seen = [(record.resource, record.outcome) for record in records.records if record.syscall == "tool.call"]
    assert seen == [
        ("plain", "ok"),
        (f"add ({level})", "ok"),
        (f"look ({level})", "tool"),
        (f"look ({level})", "ok"),
    ]


def test_a_level_that_is_missing_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Container) -> None:
        raise Unsupported("level container needs podman, which is not installed", fix="apt install podman runc")

    monkeypatch.setattr(Container, "check", missing)
    (tmp_path / "tools.toml").write_text('[commands.c]\nargv = ["true"]\nisolation = "container"')
    config = Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    with pytest.raises(AiosError, match="container"):
        InProcessKernel(config)


def test_a_confined_function_needs_its_schema(tmp_path: Path) -> None:
    (tmp_path / "tools.toml").write_text('[python.f]\nfunction = "functions:add"\nisolation = "sandbox"')
    config = Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    with pytest.raises(ConfigError, match="is not imported by the kernel"):
        InProcessKernel(config)


LAZY = """
import asyncio, sys
from aios_kernel.config import Config
from aios_kernel.managers import build_managers
from aios_kernel.plugins import Plugins

async def main():
    managers = build_managers(Config(home=sys.argv[1], embedder="hash", vectors="exact"), Plugins())
    await managers.close()

asyncio.run(main())
loaded = [name for name in sys.modules if name == "pyseccomp" or name.startswith("aios_kernel.tools.isolation")]
sys.exit(str(loaded) if loaded else 0)
"""


def test_a_kernel_without_confined_tools_looks_for_no_level(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LAZY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_holds_for_a_user_who_is_not_root() -> None:
    python = "/usr/bin/python3"
    if os.geteuid() != 0:
        pytest.skip("this user is not root already")
    if not _same_version(python) or not all(_open_to_all(entry) for entry in (*_imports(), str(ROOT))):
        pytest.skip("another user cannot reach an interpreter of this version, or its packages")
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *(python, "-m", "pytest", str(HERE), "-m", "not slow", "-p", "no:cacheprovider", "--tb=short", "-q"),
        ],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(_imports()),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
            "REQUIRE_ISOLATION": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _same_version(python: str) -> bool:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.startswith(f"Python {version}.")


def _imports() -> list[str]:
    """The import path, without the interpreter's own library."""
    return [entry for entry in sys.path if entry and os.path.exists(entry) and not entry.startswith(sys.base_prefix)]


def _open_to_all(place: str) -> bool:
    path = Path(place).resolve()
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (path, *path.parents))
