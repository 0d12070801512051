"""The bench's side of the protocol: a worker process and what one can ask it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

LOAD_LIMIT_S = 600.0
RUN_LIMIT_S = 900.0


class WorkerFailed(Exception):
    """An engine could not do what it was asked for; the message is its own."""


class Worker:
    """A process that runs one engine. A context manager: leaving it ends the process.

    Args:
        name: of the engine, for messages.
        command: that starts it.
        threads: that the numeric libraries may use, from the process's first breath on.
    """

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        self.name = name
        self.command = list(command)
        self._log = tempfile.TemporaryFile(mode="w+", prefix=f"aios-bench-{name}-")  # noqa: SIM115 - ends with us
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(threads),
            text=True,
        )
        self._threads = threads

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self, model: Path, dtype: str) -> dict[str, str]:
        """Load the model; give the versions of the engine's distributions. Raises WorkerFailed."""
        request = {"op": "load", "model": str(model), "dtype": dtype, "threads": self._threads}
        return self._ask(request, LOAD_LIMIT_S)["versions"]

    def run(self, turns: Sequence[Sequence[Sequence[int]]], n_tokens: int) -> dict[str, Any]:
        """See `workers.loop.converse`. Raises WorkerFailed."""
        return self._ask({"op": "run", "turns": turns, "n_tokens": n_tokens}, RUN_LIMIT_S)

    def margin(self, tokens: Sequence[int]) -> float:
        """See `workers.loop.Oracle.margin`. Raises WorkerFailed."""
        return self._ask({"op": "margin", "tokens": tokens}, RUN_LIMIT_S)["margin"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(limit_s, self._process.kill)
        watchdog.daemon = True  # an interrupt may come before it can be cancelled
        try:
            watchdog.start()
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            raise WorkerFailed(f"{self.name} ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.kill()  # it may have closed its output and stay
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"


# As the kernel starts its own process; the peers gain from it too.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def environment(threads: int) -> dict[str, str]:
    """Of a worker: its threads, large pages, no network."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return (
        os.environ
        | counts
        | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **_LARGE_PAGES}
    )
