"""What loading shows: one tidy bar to a person at a terminal, nothing in logs and pipes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

from aios_kernel.engine.load import load_model

PROGRAM = """
from aios_kernel.engine.load import load_model
load_model("demo", device="cpu", kv_tokens=64)
from transformers.utils import logging
assert logging.is_progress_bar_enabled()  # as it was before
"""
DOWNLOAD = """
from aios_kernel.engine._progress import download_bar
for name, description in (("huggingface_hub.snapshot_download.transfer", "wire"), (None, "files"),
                          ("huggingface_hub.snapshot_download", "bytes")):
    with download_bar()(range(3), name=name, desc=description, **{"disable": None}) as bar:
        list(bar)
"""


def at_terminal(program: str) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, stdout=theirs)
    os.close(theirs)
    shown = bytearray()
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:  # Linux reports the closed end of a pseudo-terminal so
        pass
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def in_pipe(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_loading_is_silent_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    load_model("demo", device="cpu", kv_tokens=64)
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


@pytest.mark.slow
def test_loading_shows_one_bar_at_a_terminal() -> None:
    lines = at_terminal(PROGRAM).strip().splitlines()
    assert len({line.partition(":")[0].strip() for line in lines if "%" in line}) == 1
    assert "100%" in lines[-1]


def test_downloading() -> None:
    shown = at_terminal(DOWNLOAD)
    assert "bytes" in shown
    assert "wire" not in shown
    assert "files" not in shown
    assert in_pipe(DOWNLOAD) == ""
