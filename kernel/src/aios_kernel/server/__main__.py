"""The kernel process: `python -m aios_kernel.server`, its configuration as JSON on standard input."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from aios_kernel import errors
from aios_kernel.calls import failed
from aios_kernel.config import Config
from aios_kernel.kernel import Kernel
from aios_kernel.server.log import KernelLog, LogFormat
from aios_kernel.server.runtime import running_kernel

_log = logging.getLogger("aios_kernel")
_COLLECT = (20_000, 20, 20)
"""When Python looks for cycles. Open calls are many objects and no cycles: with Python's own numbers, a kernel with
10,000 of them spends a third of its time on looking."""


def main() -> int:
    """Run a kernel until it is told to stop; gives the exit status."""
    options = _arguments()
    handler = logging.StreamHandler() if options.log is None else KernelLog(options.log)
    handler.setFormatter(LogFormat())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every call
    try:
        config = msgspec.json.decode(sys.stdin.buffer.read(), type=Config)
        asyncio.run(_serve(config, options))
    except errors.AiosError as error:
        if not _report(options.report_fd, msgspec.msgpack.encode(failed(0, error))):  # or who started it says so
            sys.stderr.write(f"error: {error}\n")
        return 2
    except Exception as error:  # noqa: BLE001 - whoever started it must learn why, whatever it was
        _log.exception("the kernel ended")
        wrapped = errors.KernelUnavailable(f"the kernel could not run: {type(error).__name__}: {error}")
        _report(options.report_fd, msgspec.msgpack.encode(failed(0, wrapped)))
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aios_kernel.server", description=__doc__)
    parser.add_argument("--leave-with-last-client", action="store_true", help="stop when the last client has left")
    parser.add_argument("--log", type=Path, help="file for the log, turned over when it is full; else standard error")
    parser.add_argument("--report-fd", type=int, default=-1, help="descriptor that gets `ready` or the error")
    return parser.parse_args()


def _report(descriptor: int, message: bytes) -> bool:
    """Tell whoever started this kernel, once; gives whether that was heard."""
    if descriptor < 0:
        return False
    try:
        os.write(descriptor, message)
        os.close(descriptor)
    except OSError:
        _log.debug("whoever started this kernel does not listen any more")
        return False
    return True


async def _serve(config: Config, options: argparse.Namespace) -> None:
    began = time.monotonic()
    async with running_kernel(config) as kernel:
        for number in (signal.SIGINT, signal.SIGTERM):
            kernel.loop.add_signal_handler(number, kernel.shutdown.set)
        kernel.loop.add_signal_handler(signal.SIGHUP, _hung_up_or_reload, kernel, _has_terminal())
        _collect_seldom()
        _log.info("ready after %.1f s: %s", time.monotonic() - began, kernel.describe())
        _report(options.report_fd, b"ready")
        kernel.leaves = options.leave_with_last_client
        leaving = kernel.loop.create_task(_leave(kernel)) if kernel.leaves else None
        await kernel.shutdown.wait()
        if leaving is not None:
            leaving.cancel()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)  # an impatient second ctrl-C must not spoil an orderly end
    gc.unfreeze()  # what Python frees last is looked through once more: libraries miss their objects aloud
    _log.info("stopped")


def _hung_up_or_reload(kernel: Kernel, had_terminal: bool) -> None:
    """Read the access policy again, unless the signal says that the terminal of this kernel has gone.

    A wrong policy is told in the log, and the old one stays.
    """
    if had_terminal and not _has_terminal():
        kernel.shutdown.set()
        return
    try:
        kernel.managers.access.reload()
    except errors.ConfigError as error:
        _log.error("the access policy stays as it was: %s", error)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _collect_seldom() -> None:
    """What is loaded by now stays: libraries and the model are never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT)


async def _leave(kernel: Kernel) -> None:
    """Stop when nobody has been connected for the grace time."""
    alone_since = time.monotonic()
    while time.monotonic() - alone_since < kernel.config.grace_s:
        await asyncio.sleep(min(0.2, kernel.config.grace_s))
        if kernel.sessions:
            alone_since = time.monotonic()
    kernel.shutdown.set()


if __name__ == "__main__":
    sys.exit(main())
