"""Start or join: find the kernel of a data directory, or start one that leaves with its last client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from aios_kernel import errors
from aios_kernel.client._address import resolved
from aios_kernel.client._connection import Connection
from aios_kernel.config import Config, home_of, load, socket_of, token_file_of
from aios_kernel.syscalls import Failed

_POLL_S = 0.05
_REPORT_BYTES = 1 << 16


def connect(config: Config | None = None, *, client: str = "", start: bool | None = None) -> Connection:
    """A connection to the kernel that the configuration names.

    With `kernel = "auto"` or "passthrough" one is started when none answers (`start=False` forbids that). Raises
    KernelUnavailable with the reason, AuthError, HandshakeRefused, or ConfigError for an URL that can be no kernel's.
    """
    config = resolved(config or load())
    if config.kernel == "inprocess":
        return _in_process(config, client)
    may_start = config.kernel in ("auto", "passthrough") if start is None else start
    connection = _try(config, client)
    if connection is not None:
        return connection
    if not may_start:
        raise errors.KernelUnavailable(f"no kernel answers at {socket_of(config)}", fix="aios serve")
    return _start_and_join(config, client)


def kernel_command(config: Config, *, forever: bool) -> list[str]:
    """The command line that runs a kernel; its configuration follows as JSON on standard input."""
    python = config.python or sys.executable
    return [python, "-m", "aios_kernel.server", *([] if forever else ["--leave-with-last-client"])]


def kernel_environment() -> dict[str, str]:
    """The environment of a kernel process: ours, with large pages for what it allocates, unless that is set already.

    Weights and KV are read from end to end in every step; with pages of 2 MiB that is up to a tenth faster.
    """
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ


def kernel_input(config: Config) -> bytes:
    """The configuration as the kernel process reads it: standard input, since arguments are public."""
    return msgspec.json.encode(config)


def _try(config: Config, client: str) -> Connection | None:
    path, token = socket_of(config), _token(config)
    try:
        return Connection.open(path, token, client)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise errors.KernelUnavailable(f"cannot connect to {path}: {error}", fix="aios doctor") from error
    except errors.AuthError:
        if _token(config) == token:
            raise
        return _try(config, client)  # a new kernel has just replaced the one whose token that was
    except errors.HandshakeRefused:
        raise
    except errors.KernelUnavailable:
        return None  # it hung up instead of greeting: it is about to leave


def _token(config: Config) -> str:
    if config.token:
        return config.token
    with contextlib.suppress(OSError):
        return token_file_of(config).read_text().strip()
    return ""


def _in_process(config: Config, client: str) -> Connection:
    try:
        from aios_kernel.server.inprocess import connect_in_process
    except ImportError as error:
        raise _no_extras(config, str(error)) from error
    return connect_in_process(config, client)


def stop_in_process(config: Config) -> None:
    """End this process's own kernel for the configured data directory, if it runs."""
    from aios_kernel.server.inprocess import stop_in_process as stop

    stop(config)


def _start_and_join(config: Config, client: str) -> Connection:
    log = home_of(config) / "run" / "kernel.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise errors.KernelUnavailable(
            f"the data directory cannot be used: {error}", fix="set AIOS_HOME to a directory of your own"
        ) from error
    ends_at = time.monotonic() + config.start_timeout_s
    while time.monotonic() < ends_at:
        failure = _launch(config, log, ends_at)
        if failure is not None and failure.code != errors.KernelLocked.code:
            raise failure
        connection = _join(config, client, ends_at)
        if connection is not None:
            return connection
    raise errors.KernelUnavailable(_silent(config, log), fix="aios doctor")


def _join(config: Config, client: str, ends_at: float) -> Connection | None:
    """Wait for the kernel that holds the lock: ours, or somebody else's. None when it has left instead of answering."""
    while time.monotonic() < ends_at:
        connection = _try(config, client)
        if connection is not None or not _locked(config):
            return connection
        time.sleep(_POLL_S)
    return None


def wait_until_free(config: Config, seconds: float) -> bool:
    """Wait for the kernel that owns the data directory to leave; whether it has."""
    ends_at = time.monotonic() + seconds
    while (locked := _locked(config)) and time.monotonic() < ends_at:
        time.sleep(_POLL_S)
    return not locked


def _locked(config: Config) -> bool:
    """Whether a kernel owns the data directory; a shared lock for a moment, which the start of a kernel expects."""
    try:
        with (home_of(config) / "run" / "kernel.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _silent(config: Config, log: Path) -> str:
    return f"the kernel did not answer within {config.start_timeout_s:.0f} s; its log is {log}"


def _launch(config: Config, log: Path, ends_at: float) -> errors.AiosError | None:
    """Start a kernel process and wait until it reports: None when it is ready, else why not."""
    ours, theirs = os.pipe()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*kernel_command(config, forever=False), "--report-fd", str(theirs), "--log", str(log)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(theirs,),
                start_new_session=True,  # ctrl-C is for the agent, not for the kernel it shares
                cwd="/",
                env=kernel_environment(),
            )
    except OSError as error:
        os.close(ours)
        os.close(theirs)
        raise _no_extras(config, str(error)) from error
    os.close(theirs)
    with os.fdopen(ours, "rb") as reports:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(kernel_input(config))
        ready, _, _ = select.select([reports], [], [], max(0.0, ends_at - time.monotonic()))
        # As it comes, not up to the end: whatever else was started at that moment may hold the pipe for long.
        report = reports.read1(_REPORT_BYTES) if ready else b""
    threading.Thread(target=process.wait, name="aios-reaper", daemon=True).start()  # it may outlive us, or not
    if not ready:
        return errors.KernelUnavailable(_silent(config, log), fix="raise start_timeout_s; `aios doctor`")
    if report == b"ready":
        return None
    if report:
        failed = msgspec.msgpack.decode(report, type=Failed)
        return errors.from_code(failed.code, failed.message, fix=failed.fix)
    return _no_extras(config, _tail(log))


def _tail(log: Path, lines: int = 5) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def _no_extras(config: Config, why: str) -> errors.KernelUnavailable:
    return errors.KernelUnavailable(
        f"a kernel could not be started with {config.python or sys.executable}: {why.strip()}",
        fix="aios serve in the environment that has aios-kernel[server,torch,memory], "
        "or set AIOS_PYTHON to its interpreter",
    )
