"""The process of an MCP server: its environment, its end, and the last words on its standard error."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, final

from aios_kernel.errors import ConfigError, ToolNotStarted
from aios_kernel.tools.mcp.hidden import visible

MOST_LINE: Final = 16 * 1024 * 1024
"""Bytes of one message; the same that a tool may return."""
_GRACE_S: Final = 2.0
LAST_WORDS: Final = 2048
"""Bytes of what it wrote to its standard error that are kept."""
PASSED_CONFINED: Final = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""What a confined server sees of the kernel's environment; PATH and HOME are its isolation level's."""
_PASSED: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")


def server_environment(
    names: Sequence[str], known: Mapping[str, str] | None = None, *, passed: Sequence[str] = _PASSED
) -> dict[str, str]:
    """What a server sees of the kernel's environment: the place of programs and of home, the locale, and `names`.

    Args:
        names: of variables.
        known: the kernel's environment.
        passed: variables that it sees anyway.

    Raises:
        ConfigError: `names` has one that is not set, or one of the kernel's own, which hold its token.
    """
    known = os.environ if known is None else known
    for name in names:
        if name.upper().startswith("AIOS_"):
            raise ConfigError(
                f"env names {name}: the kernel's own settings are not for MCP servers", fix="leave it out"
            )
        if name not in known:
            raise ConfigError(f"env names {name}, which is not set", fix=f"export {name}=..., or leave it out")
    return {name: known[name] for name in (*passed, *names) if name in known}


class ServedProcess(Protocol):
    """A running MCP server that talks on its input and output."""

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """What it reads."""
        ...

    @property
    def stdout(self) -> asyncio.StreamReader:
        """What it writes."""
        ...

    async def obituary(self) -> str:
        """How it ended, in words, waiting a moment for it to be known."""
        ...

    async def stop(self, *, patient: bool = True) -> None:
        """End it and its children: close its input, and force it if that is not enough; at once if not `patient`."""
        ...


StartProcess: TypeAlias = Callable[[], Awaitable[ServedProcess]]
"""Starts a server. Raises ToolNotStarted."""


@final
class ServerProcess:
    """A running server in a session, and so a process group, of its own. Made by `start`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._words = bytearray()
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> ServerProcess:
        """Start it.

        Raises:
            ToolNotStarted: there is no such program, or it cannot be run.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=env,
                cwd=cwd,
                start_new_session=True,  # ctrl-C is for the kernel; and its end takes its children along
                limit=MOST_LINE,
            )
        except (OSError, ValueError) as error:
            raise ToolNotStarted(
                f"{command[0]} cannot be run: {error}", fix="mend `command` in the tools file"
            ) from error
        return cls(process)

    @property
    def stdin(self) -> asyncio.StreamWriter:
        """What it reads."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> asyncio.StreamReader:
        """What it writes."""
        assert self._process.stdout is not None
        return self._process.stdout

    async def obituary(self) -> str:
        """How it ended, in words, waiting a moment for it to be known."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.gather(self._process.wait(), asyncio.shield(self._listener))
        code = self._process.returncode
        if code is None:
            return "it closed its output and still runs"
        how = f"it ended with status {code}" if code >= 0 else f"it was ended by {_signal_name(-code)}"
        words = visible(self._words.decode(errors="replace").strip())
        return f"{how}; its last words: {words}" if words else how

    async def stop(self, *, patient: bool = True) -> None:
        """End it and its children: close its input, and after two seconds each SIGTERM and SIGKILL."""
        with contextlib.suppress(OSError, RuntimeError):
            self.stdin.close()
        if not (patient and await self._gone()):
            self._signal(signal.SIGTERM)
            if not (patient and await self._gone()):
                self._signal(signal.SIGKILL)
                await self._gone()
        if not self.stdout.at_eof():
            self._signal(signal.SIGKILL)  # a child that it left behind still has its output open
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        transport = getattr(self._process, "_transport", None)  # nothing public closes the pipes for good
        if transport is not None:
            transport.close()

    async def _gone(self) -> bool:
        """Whether it has ended; waits for that by its status alone, since a child may keep its pipes open."""
        ends_at = asyncio.get_running_loop().time() + _GRACE_S
        while self._process.returncode is None:
            if asyncio.get_running_loop().time() > ends_at:
                return False
            await asyncio.sleep(0.01)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _listen(self) -> None:
        """Read standard error for as long as it comes, and keep the end of it: a full pipe would block the server."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(65536):
            self._words += chunk
            del self._words[:-LAST_WORDS]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
