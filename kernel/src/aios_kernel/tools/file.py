"""The tools file: commands, Python functions and MCP servers that the kernel hosts, and rules for the agents' own."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from aios_kernel.config import Config, home_of
from aios_kernel.errors import ConfigError
from aios_kernel.tools.confinement import UNSHARED, Confinement
from aios_kernel.tools.hosted import Effects, Isolation, Retry

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
_Argv: TypeAlias = Annotated[list[str], msgspec.Meta(min_length=1)]
_Function: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]

DEFAULT = "tools.toml"


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what stands in the file; a misspelt key is an error."""


class ToolPolicy(_Table, frozen=True, kw_only=True):
    """The keys that all hosted tools have; what they mean is said at `HostedTool`."""

    isolation: Isolation = "trusted"
    timeout_s: _Seconds | None = None
    expected_s: _Seconds | None = None
    max_running: _Count | None = None
    exclusive: str | None = None
    retry: Retry = Retry()
    effects: Effects = "once"
    untrusted: bool = False
    confinement: Confinement = UNSHARED


class CommandEntry(ToolPolicy, frozen=True, kw_only=True):
    """`[commands.NAME]`: a program.

    Attributes:
        argv: the program and its arguments; `{name}` in one of them stands for the call's argument of that name, and
            stays part of that one. `{idempotency_key}` is the call's key.
        parameters: JSON schema of the call's arguments.
        description: for the model.
        options: parameters whose values may begin with "-"; others may not, unless `--` stands before them in `argv`.
        env: names of the kernel's environment variables that the command sees; PATH and the locale it has anyway.
        cwd: where it runs; empty: a new empty folder.
        stdin: what it reads, with `{name}` as in `argv`.
        status: of a queryable command: the program that says whether the call of `{idempotency_key}` was done. It ends
            with 0 and prints the result if it was, with 1 if not, and otherwise does not know.
    """

    argv: _Argv
    parameters: dict[str, Any] = {}
    description: str = ""
    options: list[str] = []
    env: list[str] = []
    cwd: str = ""
    stdin: str = ""
    status: list[str] = []


class PythonEntry(ToolPolicy, frozen=True, kw_only=True):
    """`[python.NAME]`: a function.

    Attributes:
        function: `package.module:function`; may be a coroutine function.
        parameters: JSON schema of the call's arguments; empty: made from the function's signature.
        description: for the model; empty: the first paragraph of the function's docstring.
        status: of a queryable function: the function that takes a key and gives an `EffectStatus`.
    """

    function: _Function
    parameters: dict[str, Any] = {}
    description: str = ""
    status: _Function | None = None


class McpToolPolicy(ToolPolicy, frozen=True, kw_only=True):
    """`[mcp.NAME.tools.TOOL]`: the policy of one tool of a server, in the place of the server's."""

    untrusted: bool = True


class McpEntry(ToolPolicy, frozen=True, kw_only=True):
    """`[mcp.NAME]`: an MCP server, started by `command` (stdio) or reached at `url` (streamable HTTP).

    Attributes:
        command: program and arguments of a server to start.
        url: of a server that runs.
        env: names of the kernel's environment variables that a started server sees; PATH and the locale it has anyway.
        tools: policies of single tools.
    """

    command: list[str] = []
    url: str = ""
    env: list[str] = []
    untrusted: bool = True
    tools: dict[str, McpToolPolicy] = {}


class LocalEntry(_Table, frozen=True, kw_only=True):
    """`[local.NAME]`: rules for a tool that runs in the agents' own processes; keys as at `ToolPolicy`.

    `parameters` is the JSON schema that its calls are held to; empty: any object.
    """

    timeout_s: _Seconds | None = None
    expected_s: _Seconds | None = None
    max_running: _Count | None = None
    exclusive: str | None = None
    untrusted: bool = False
    parameters: dict[str, Any] = {}


class ToolsFile(_Table, frozen=True, kw_only=True):
    """All of it, by section and name."""

    commands: dict[str, CommandEntry] = {}
    python: dict[str, PythonEntry] = {}
    mcp: dict[str, McpEntry] = {}
    local: dict[str, LocalEntry] = {}


def read_tools(config: Config) -> ToolsFile:
    """The tools file of a kernel: `tools` of its configuration, below the data directory unless it says otherwise.

    Raises:
        ConfigError: a file that was named and is not there, or one that is wrong; tells the file and the key.
    """
    path = home_of(config) / Path(config.tools or DEFAULT).expanduser()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not config.tools:
            return ToolsFile()
        raise ConfigError(f"there is no tools file {path}", fix="write it, or unset `tools` (AIOS_TOOLS)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix=f"edit {path}") from error
    file = ToolsFile(**{section: _entries(path, section, table) for section, table in found.items()})
    _check(path, file)
    return file


_KINDS: dict[str, type[_Table]] = {
    "commands": CommandEntry,
    "python": PythonEntry,
    "mcp": McpEntry,
    "local": LocalEntry,
}


def _entries(path: Path, section: str, table: Any) -> dict[str, Any]:
    """A section's entries; each is read by itself, so that an error can tell its name."""
    if section not in _KINDS:
        raise _wrong(path, section, f"there is no such section{_nearest(section, _KINDS)}")
    found: dict[str, Any] = {}
    for name, entry in _convert(path, section, table, dict[str, dict[str, Any]]).items():
        found[name] = _convert(path, f"{section}.{name}", entry, _KINDS[section])
    return found


def _convert(path: Path, key: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        if unknown := re.search(r"unknown field `(.+?)`", reason):
            reason = f"there is no key `{unknown[1]}`{_nearest(unknown[1], _KEYS)}"
        raise _wrong(path, key + place.rstrip("`"), reason) from error


def _wrong(path: Path, key: str, reason: str) -> ConfigError:
    return ConfigError(f"{path}: {key}: {reason}", fix=f"edit {path}")


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _check(path: Path, file: ToolsFile) -> None:
    """What the types do not say."""
    for name, entry in file.mcp.items():
        if bool(entry.command) == bool(entry.url):
            raise _wrong(path, f"mcp.{name}", "it needs either `command` or `url`")
    for section, entries in (("commands", file.commands), ("python", file.python)):
        for name, entry in entries.items():
            if bool(entry.status) != (entry.effects == "queryable"):
                raise _wrong(path, f"{section}.{name}", '`status` and effects = "queryable" go together')


_KEYS = sorted({
    key
    for table in (*_KINDS.values(), Retry, Confinement)
    for key in table.__struct_fields__
})  # fmt: skip
