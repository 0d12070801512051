"""Putting a kernel together and keeping it: lock, model, managers, doors, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import getpass
import os
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import IO, cast

from aios_kernel import errors
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.config import Config, home_of, socket_of, token_file_of
from aios_kernel.engine.protocol import LoraAdapters
from aios_kernel.kernel import Kernel, MakePolicy
from aios_kernel.managers import Managers, build_managers
from aios_kernel.mounts import watching
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.build import with_limits
from aios_kernel.scheduler.protocol import Options, Policy
from aios_kernel.server.socket_file import private_folder
from aios_kernel.server.unix import Doorman, Doors, listening

_PROBE_S = 0.05


def lock_home(config: Config) -> IO[str]:
    """Take the data directory's lock; it is held until the file is closed or the process dies.

    Raises KernelLocked when another kernel owns the directory: two writers would lose vectors silently.
    """
    run = home_of(config) / "run"
    private_folder(run)
    lock = (run / "kernel.lock").open("a+")
    try:
        _flock(lock)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise errors.KernelLocked(
            f"another kernel (pid {owner}) owns {home_of(config)}",
            fix="use it (nothing to start), end it with `aios kill --kernel`, or set AIOS_HOME to another directory",
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _flock(lock: IO[str]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_PROBE_S)  # a client may just have looked whether the lock is free
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_token(config: Config) -> str:
    """The user's token: the configured one, else a fresh one, left in a file that only this user can read.

    The file is replaced as a whole: nobody reads half a token, and whatever lay there before keeps its bytes.
    """
    token = config.token or secrets.token_urlsafe(32)
    path = token_file_of(config)
    private_folder(path.parent)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    fresh.replace(path)
    return token


@asynccontextmanager
async def running_kernel(config: Config, doors: Doors | None = None) -> AsyncGenerator[Kernel, None]:
    """A kernel with its doors open, on this loop; closed in order at the end.

    `doors` counts the connections; pass it to open more of them than the socket's.
    """
    plugins = Plugins()
    make_policy = with_limits(config, policy_maker(plugins))
    policy = make_policy(config.policy, config.policy_options)
    doors = doors or Doors()
    with contextlib.closing(lock_home(config)):
        token = write_token(config)
        doorman = Doorman(token, principal_name(), config.principals)
        # Loading takes seconds and would block the loop's signals.
        model = await asyncio.to_thread(_load, plugins, config)
        managers: Managers = await asyncio.to_thread(build_managers, config, plugins)
        kernel = Kernel(config, model, managers, policy, make_policy)
        try:
            async with (
                watching(config.mounts, managers.memory, principal_name()),
                listening(kernel, doorman, doors, socket_of(config)),
                _http(kernel, token),
            ):
                await managers.start()
                yield kernel
        finally:
            await kernel.close()
            await doors.close()


def policy_maker(plugins: Plugins) -> MakePolicy:
    """Makes policies of these plugins by name."""

    def make(name: str, options: Options) -> Policy:
        return plugins.pick("aios_kernel_policies", "policy", name)(options)

    return make


@asynccontextmanager
async def _http(kernel: Kernel, token: str) -> AsyncGenerator[None, None]:
    if not kernel.config.http:
        yield
        return
    from aios_kernel.server.http import HttpFront

    front = HttpFront(kernel, kernel.config, token)
    kernel.http_url = ",".join(await front.start())
    try:
        yield
    finally:
        await front.stop()


def _load(plugins: Plugins, config: Config) -> LoadedModel:
    """The model and its adapters. Raises what its engine raises for them, and ConfigError, Unsupported."""
    model = _loader(plugins, config.model)(config)
    engine = model.engine
    if config.loras and not (engine.capabilities.lora and isinstance(engine, LoraAdapters)):
        raise errors.Unsupported(
            f"the {engine.name} engine serves no LoRA adapters, and {', '.join(config.loras)} are configured",
            fix="leave --lora and [loras] out, or serve a model on the torch engine",
        )
    for name, source in config.loras.items():
        if not name or name == model.name:
            raise errors.ConfigError(
                f'a LoRA adapter cannot be called "{name}": the model has that name'
                if name
                else "an adapter has no name",
                fix="give it a name of its own: --lora NAME=PATH",
            )
        cast("LoraAdapters", engine).load_lora(name, source)
    return model


def _loader(plugins: Plugins, model: str):
    scheme = model.partition(":")[0]
    engines = plugins.named("aios_kernel_engines")
    return engines.get(scheme) or engines["torch"]


def principal_name() -> str:
    """The default principal: this user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"
