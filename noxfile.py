"""Environments of frameworks that cannot live together, each a session; see tests/environments/groups.toml.

    nox                     all of them
    nox -s openai-2         one

A session installs its group; the tests themselves run in the main environment (`make setup`), which has the kernel.
`adapter-...` sessions run an adapter's own tests beside the framework, against kernels of the main environment.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
MAIN = ROOT / ".venv" / "bin" / "python"
GROUPS: dict[str, Any] = tomllib.loads((ROOT / "tests" / "environments" / "groups.toml").read_text())

TOOLS = ["pytest>=8,<10", "pytest-asyncio>=1,<2", "pytest-timeout>=2.3,<3", "pytest-rerunfailures>=16.7,<17"]

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


def _session(name: str, packages: list[str], tests: list[str]) -> None:
    @nox.session(name=name)
    def run(session: nox.Session) -> None:
        session.install(*packages)
        session.run(
            str(MAIN), "-m", "pytest", *tests, *session.posargs, external=True,
            env={
                "OUTSIDE_GROUP": name,
                "OUTSIDE_PYTHON": str(Path(session.bin) / "python"),
                "OUTSIDE_REPORT": os.environ.get("OUTSIDE_REPORT", ""),
            },
        )  # fmt: skip


for _name, _group in GROUPS.items():
    _session(_name, _group["packages"], _group.get("tests", ["tests/environments"]))


ADAPTERS = {
    "adapter-openai-3": ("openai", ["openai>=3.52,<4", "httpx>=0.28,<1"]),
}
"""Adapters beside versions of their frameworks that the main environment does not have."""


def _adapter_session(name: str, adapter: str, packages: list[str]) -> None:
    @nox.session(name=name)
    def run(session: nox.Session) -> None:
        session.install(*TOOLS, *packages, "-e", "kernel", "-e", ".", "-e", f"adapters/{adapter}")
        tests = f"adapters/{adapter}/tests"
        # A kernel process outlives the object that started it, and Python warns of that.
        quiet = ["-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
        session.run("python", "-m", "pytest", *quiet, tests, *session.posargs, env={"AIOS_PYTHON": str(MAIN)})


for _name, (_adapter, _packages) in ADAPTERS.items():
    _adapter_session(_name, _adapter, _packages)
