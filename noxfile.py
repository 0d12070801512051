"""Environments of frameworks that cannot live together, each a session; see tests/environments/groups.toml.

    nox                     all of them
    nox -s openai-2         one

A session installs its group; the tests themselves run in the main environment (`make setup`), which has the kernel.
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

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True


def _session(name: str, packages: list[str]) -> None:
    @nox.session(name=name)
    def run(session: nox.Session) -> None:
        session.install(*packages)
        session.run(
            str(MAIN), "-m", "pytest", "tests/environments", *session.posargs, external=True,
            env={
                "OUTSIDE_GROUP": name,
                "OUTSIDE_PYTHON": str(Path(session.bin) / "python"),
                "OUTSIDE_REPORT": os.environ.get("OUTSIDE_REPORT", ""),
            },
        )  # fmt: skip


for _name, _group in GROUPS.items():
    _session(_name, _group["packages"])
