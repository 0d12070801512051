"""Commands of the tools file: programs whose arguments are filled in, without a shell."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, final

import msgspec

from aios_kernel.config import Config
from aios_kernel.errors import ConfigError, ToolError
from aios_kernel.syscalls import ToolSpec
from aios_kernel.tools.file import CommandEntry, ToolsFile
from aios_kernel.tools.hosted import HostedTool, Launch
from aios_kernel.tools.isolation.confine import command, status
from aios_kernel.tools.isolation.level import Runner
from aios_kernel.tools.isolation.places import PATH
from aios_kernel.tools.isolation.plain import Plain
from aios_kernel.tools.isolation.reference import StatusCommand
from aios_kernel.tools.source import Offer

KEY = "idempotency_key"
_PART = re.compile(r"\{\{|\}\}|\{(\w+)\}")
_LOCALE = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")


@final
class CommandTools:
    """The tools of `[commands]`; a source.

    Raises:
        ConfigError: a program that is not there, or a placeholder that is no parameter.
    """

    def __init__(self, config: Config, file: ToolsFile) -> None:
        del config
        self._plain = Runner(Plain())
        self._tools = [self._hosted(name, entry) for name, entry in file.commands.items()]

    def tools(self) -> Sequence[HostedTool]:
        """The tools; those above `trusted` are confined by the registry."""
        return self._tools

    async def start(self, offer: Offer) -> None:
        """Nothing to connect."""

    async def close(self) -> None:
        """End the fork server of trusted commands."""
        self._plain.stop()

    def _hosted(self, name: str, entry: CommandEntry) -> HostedTool:
        template = Template(name, entry)
        ask = StatusCommand(template.status) if entry.status else None
        trusted = entry.isolation == "trusted"
        return HostedTool(
            spec=ToolSpec(name=name, description=entry.description, parameters=entry.parameters),
            run=command(self._plain, name, template.launch, entry.confinement),
            isolation=entry.isolation,
            timeout_s=entry.timeout_s,
            expected_s=entry.expected_s,
            max_running=entry.max_running,
            exclusive=entry.exclusive,
            retry=entry.retry,
            effects=entry.effects,
            status=status(self._plain, name, ask, entry.confinement) if ask and trusted else ask,
            untrusted=entry.untrusted,
            launch=template.launch,
            confinement=entry.confinement,
        )


@final
class Template:
    """A command with places for arguments. `{name}` is one; `{{` and `}}` are braces.

    Each word of `argv` stays one argument, whatever is filled in. A word whose argument was not given is left out.
    """

    def __init__(self, name: str, entry: CommandEntry) -> None:
        self._name = name
        self._entry = entry
        known = {*entry.parameters.get("properties", {}), KEY}
        for word in (*entry.argv, entry.stdin, *entry.status):
            for unknown in {found[1] for found in _PART.finditer(word) if found[1]} - known:
                raise ConfigError(
                    f"commands.{name}: {{{unknown}}} is no parameter of the command",
                    fix="add it to `parameters`, or write {{ and }} for braces",
                )
        self._argv = [self._program(entry.argv[0]), *entry.argv[1:]]
        self._status = [self._program(entry.status[0]), *entry.status[1:]] if entry.status else []

    def launch(self, arguments: Mapping[str, Any]) -> Launch:
        """The process of one call. Raises ToolError for an argument that the program could misread."""
        return Launch(
            argv=self._filled(self._argv, arguments),
            env=_environment(self._entry.env),
            cwd=self._entry.cwd,
            stdin=self._fill(self._entry.stdin, arguments) or "",
        )

    def status(self, key: str) -> Launch:
        """The process that says whether the call of a key was done."""
        return Launch(
            argv=self._filled(self._status, {KEY: key}), env=_environment(self._entry.env), cwd=self._entry.cwd
        )

    def _filled(self, argv: list[str], arguments: Mapping[str, Any]) -> list[str]:
        words: list[str] = []
        options_over = False
        for word in argv:
            filled = self._fill(word, arguments)
            if filled is None:
                continue
            if filled.startswith("-") and not word.startswith("-") and not options_over:
                self._refuse_option(word, filled)
            options_over = options_over or word == "--"
            if "\0" in filled:
                raise ToolError(f'tool "{self._name}": an argument has a zero byte', fix="leave it out")
            words.append(filled)
        return words

    def _refuse_option(self, word: str, filled: str) -> None:
        found = _PART.match(word)
        if found is None or found[1] not in self._entry.options:
            raise ToolError(
                f'tool "{self._name}": {filled[:80]!r} begins with "-", which the program could take for an option',
                fix='send a value without it, put "--" before the placeholder in argv, or name it in `options`',
            )

    def _fill(self, word: str, arguments: Mapping[str, Any]) -> str | None:
        """The word with its arguments; None if one of them was not given."""
        names = {found[1] for found in _PART.finditer(word) if found[1]}
        if any(arguments.get(name) is None for name in names):
            return None
        return _PART.sub(lambda found: _text(arguments[found[1]]) if found[1] else found[0][0], word)

    def _program(self, program: str) -> str:
        found = shutil.which(program, path=_environment(self._entry.env)["PATH"])
        if found is None:
            raise ConfigError(
                f"commands.{self._name}: there is no program {program}",
                fix="install it, or give its whole path in the tools file",
            )
        return os.path.abspath(found)


def _environment(names: list[str]) -> dict[str, str]:
    """PATH, the locale, and of the kernel's variables those that are named."""
    kept = {name: os.environ[name] for name in (*_LOCALE, *names) if name in os.environ}
    return {"PATH": PATH, "LANG": "C.UTF-8"} | kept


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
