"""Ways in which a kernel's start could wait for ever, and does not."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from aios_kernel.client import kernel_command, kernel_input
from aios_kernel.config import Config
from aios_kernel.errors import KernelLocked
from aios_kernel.server.socket_file import bind


def test_the_other_end_of_its_input_may_stay_open(tmp_path: Path) -> None:
    """A process that was forked at that moment holds a copy of it for as long as it lives."""
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    ours, theirs = os.pipe()
    command = [*kernel_command(config, forever=True), "--report-fd", str(theirs)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(theirs,)) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(kernel_input(config))
        process.stdin.flush()
        with os.fdopen(ours, "rb") as reports:
            assert reports.read() == b"ready"
        process.terminate()
        assert process.wait(10) == 0


def test_a_socket_whose_owner_takes_no_more_is_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "kernel.sock"
    with contextlib.ExitStack() as stack:
        owner = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        owner.bind(str(path))
        owner.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting.setblocking(False)
                waiting.connect(str(path))
        with pytest.raises(KernelLocked):
            bind(path)
