"""A kernel in this very process, behind the same protocol: for tests and notebooks."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from aios_kernel import errors
from aios_kernel.client import Connection
from aios_kernel.config import Config, home_of
from aios_kernel.kernel import Kernel
from aios_kernel.server.runtime import principal_name, running_kernel
from aios_kernel.server.unix import Door, Doorman, Doors

T = TypeVar("T")

_log = logging.getLogger(__name__)


class InProcessKernel:
    """A kernel on a thread with a loop of its own. `connect` gives connections; `stop` ends it."""

    def __init__(self, config: Config) -> None:
        """Start it; raises what the start raised."""
        self.config = config
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._doors: Doors
        self._closed = False
        self._opening: set[asyncio.Task[object]] = set()
        self.kernel: Kernel | None = None
        self._thread = threading.Thread(target=self._run, name="aios-kernel", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive() and self.kernel is not None

    def connect(self, client: str = "") -> Connection:
        """A connection over a socket pair: the same frames as from another process."""
        assert self.kernel is not None
        ours, theirs = socket.socketpair()
        try:
            self.kernel.loop.call_soon_threadsafe(self._open_door, theirs)
            return Connection(ours, "inprocess", client)
        except RuntimeError as error:  # the loop is closed: the kernel has just stopped
            theirs.close()
            ours.close()
            raise errors.KernelUnavailable("the in-process kernel has stopped", fix="run it again") from error
        except BaseException:
            ours.close()
            raise

    def stop(self, *, at_exit: bool = False) -> None:
        """End it and wait until everything is on disk. `at_exit`: the interpreter gives no more threads."""
        if self.running and self.kernel is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just been closed
                self.kernel.loop.call_soon_threadsafe(self._shut, self.kernel, at_exit)
        self._thread.join()

    @staticmethod
    def _shut(kernel: Kernel, at_exit: bool) -> None:
        if at_exit:
            kernel.loop.set_default_executor(_Inline())
        kernel.shutdown.set()

    def _open_door(self, sock: socket.socket) -> None:
        assert self.kernel is not None
        kernel, doorman = self.kernel, Doorman("inprocess", principal_name(), {})
        sock.setblocking(False)
        opening = kernel.loop.create_task(
            kernel.loop.connect_accepted_socket(lambda: Door(kernel, doorman, self._doors), sock)
        )
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for the start
            if self._started.is_set() and not self._closed:
                _log.error("the in-process kernel ended with an error", exc_info=error)
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        self._doors = Doors()
        async with running_kernel(self.config, self._doors) as kernel:
            self.kernel = kernel
            self._started.set()
            await kernel.shutdown.wait()
        self._closed = True


class _Inline(concurrent.futures.ThreadPoolExecutor):
    """Runs at once, in the calling thread: Python's own executors are shut before `atexit` functions run."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """The finished future of `fn(*args, **kwargs)`."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
            future.set_exception(error)
        return future


class _Shared:
    """The in-process kernels of this process, one a data directory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kernels: dict[Path, InProcessKernel] = {}
        atexit.register(self._stop_all)

    def get(self, config: Config) -> InProcessKernel:
        with self._lock:
            kernel = self._kernels.get(home_of(config))
            if kernel is None or not kernel.running:
                kernel = self._kernels[home_of(config)] = InProcessKernel(config)
            elif kernel.config != config:
                raise errors.ConfigError(
                    f"the in-process kernel of {home_of(config)} runs with another configuration",
                    fix="use another AIOS_HOME",
                )
            return kernel

    def stop(self, config: Config) -> None:
        with self._lock:
            kernel = self._kernels.pop(home_of(config), None)
        if kernel is not None:
            kernel.stop()

    def _stop_all(self) -> None:
        with self._lock:
            for kernel in self._kernels.values():
                kernel.stop(at_exit=True)
            self._kernels.clear()


_shared = _Shared()


def connect_in_process(config: Config, client: str = "") -> Connection:
    """A connection to this process's kernel for the configured data directory, started at the first call."""
    return _shared.get(config).connect(client)


def stop_in_process(config: Config) -> None:
    """End this process's kernel for the configured data directory, if it runs."""
    _shared.stop(config)
