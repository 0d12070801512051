"""Runs one long job and writes down what becomes of it: `python -I -S supervisor.py FOLDER`.

A process of its own session, which outlives the kernel that started it; standard library only. In the folder:

    launch.json   what to run; removed once it was read
    lock          held (flock) as long as this process lives
    begun         made by whoever comes first: this process, which may run the job then, or a kernel that gave it up
    pid           of this process, once the job runs
    output        what the job prints to its standard output
    log           the same and its standard error, as it came
    exit.json     how it ended; written last, as a whole
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time

_TICK_S = 0.2
_TERM_S = 5.0
_REST_S = 1.0
"""How long what a job printed last may take to arrive."""
_CHUNK = 1 << 16
_FILES = ("output", "log")


class _Cancelled:
    """Whether somebody has asked this process to end."""

    asked = False


def main(folder: str) -> int:
    """Run the job of a folder to its end; gives 0 when its end was written down."""
    os.chdir(folder)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open("launch.json", encoding="utf-8") as file:
        launch = json.load(file)
    try:
        os.close(os.open("begun", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return 1  # a kernel has given this process up
    signal.signal(signal.SIGTERM, _cancel)
    os.unlink("launch.json")  # its arguments are nobody's any more
    _write("exit.json", _run(launch))
    return 0


def _cancel(number: int, frame: object) -> None:
    _Cancelled.asked = True


def _run(launch: dict) -> dict:  # type: ignore[type-arg]
    """How the job ended: its status, or why it has none."""
    began = time.time()
    if not launch["cwd"]:
        os.mkdir("work", 0o700)
    try:
        job = subprocess.Popen(
            launch["argv"],
            env=launch["env"],
            cwd=launch["cwd"] or "work",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    except OSError as error:
        return {"status": None, "reason": "not_started", "error": str(error), "began_s": began, "ended_s": time.time()}
    _write("pid", os.getpid())
    reason = _Watch(job, launch).run()
    return {"status": job.returncode, "reason": reason, "error": "", "began_s": began, "ended_s": time.time()}


class _Watch:
    """Feeds a job, writes down what it prints, and ends it when its time or its room is over."""

    def __init__(self, job: subprocess.Popen[bytes], launch: dict) -> None:  # type: ignore[type-arg]
        self.job = job
        self.ends_at = time.monotonic() + launch["timeout_s"]
        self.room = launch["max_bytes"]
        self.given = launch["stdin"].encode()
        self.output, self.log = (os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in _FILES)
        self.selector = selectors.DefaultSelector()
        for stream in (job.stdin, job.stdout, job.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            events = selectors.EVENT_WRITE if stream is job.stdin else selectors.EVENT_READ
            self.selector.register(stream, events)

    def run(self) -> str:
        """Until the job has ended and what it printed is read; gives why it ended."""
        reason, ended_at = "", None
        while self.selector.get_map() or self.job.poll() is None:
            if self.selector.get_map():
                for key, _ in self.selector.select(_TICK_S):
                    self._serve(key.fileobj)
            else:
                time.sleep(_TICK_S / 10)
            if self.job.poll() is not None:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > _REST_S:  # what it has left behind keeps the pipes open
                    _signal(self.job.pid, signal.SIGKILL)
                    break
            elif reason := self._why_end():
                self._end()
        return reason or "exited"

    def _serve(self, stream: object) -> None:
        if stream is self.job.stdin:
            self._feed()
            return
        try:
            data = os.read(stream.fileno(), _CHUNK)  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        if not data:
            self.selector.unregister(stream)  # type: ignore[arg-type]
            return
        self.room -= len(data)
        if stream is self.job.stdout:
            _write_all(self.output, data)
        _write_all(self.log, data)

    def _feed(self) -> None:
        assert self.job.stdin is not None
        if self.given:
            try:
                self.given = self.given[os.write(self.job.stdin.fileno(), self.given) :]
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.given = b""
        if not self.given:
            self.selector.unregister(self.job.stdin)
            self.job.stdin.close()

    def _why_end(self) -> str:
        if _Cancelled.asked:
            return "cancelled"
        if time.monotonic() > self.ends_at:
            return "timeout"
        return "too_much" if self.room < 0 else ""

    def _end(self) -> None:
        """End the job's session: politely, then not."""
        ends_at = time.monotonic() + _TERM_S
        _signal(self.job.pid, signal.SIGTERM)
        while self.job.poll() is None and time.monotonic() < ends_at:
            time.sleep(_TICK_S / 10)
        _signal(self.job.pid, signal.SIGKILL)
        self.job.wait()


def _die_with_parent() -> None:
    """Linux: whoever kills this process kills the job, too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _write(name: str, value: object) -> None:
    """Write a file as a whole, durable on return."""
    with open(f"{name}.part", "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{name}.part", name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
