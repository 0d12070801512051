"""Importing MetaGPT with and without its configuration file, each in a process and a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import aios_adapters
from metagpt.config2 import config
print("shown:", config.llm.api_key, config.llm.model, config.language)
"""
OWN = 'llm:\n  api_type: openai\n  api_key: "{key}"\n  model: my-model\nlanguage: German\n'


def imported(home: Path) -> str:
    """The configuration that MetaGPT finds in a home, which is also its working directory."""
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("METAGPT_PROJECT_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHOW],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return next((line for line in done.stdout.splitlines() if line.startswith("shown:")), done.stderr)


def test_no_file_is_needed_and_none_is_made(tmp_path: Path) -> None:
    assert imported(tmp_path) == "shown: sk-served-by-the-aios-kernel gpt-4o English"
    assert not (tmp_path / ".metagpt").exists()
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("folder", [".metagpt", "config"])
def test_the_users_file_holds(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "config2.yaml"
    file.parent.mkdir()
    file.write_text(OWN.format(key="sk-mine"))
    assert imported(tmp_path) == "shown: sk-mine my-model German"
    assert file.read_text() == OWN.format(key="sk-mine")


def test_a_key_that_was_never_filled_in_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".metagpt").mkdir()
    (tmp_path / ".metagpt" / "config2.yaml").write_text(OWN.format(key="YOUR_API_KEY"))
    assert imported(tmp_path) == "shown: sk-served-by-the-aios-kernel my-model German"
