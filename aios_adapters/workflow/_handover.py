"""Handing a program over to a child process: which kernel to join, and whose child its agents are."""

from __future__ import annotations

import os

from aios_adapters._kernel import KernelLink
from aios_adapters._options import AgentOptions
from aios_adapters._scope import Scope
from aios_kernel.config import Config, socket_of
from aios_kernel.errors import ConfigError

_PARENT = "AIOS_PARENT"


class Foreign(Scope):
    """A program of another process, as the parent of scopes here; that process registers and ends it."""

    def __init__(self, program: str, agent: str, link: KernelLink) -> None:
        super().__init__(AgentOptions(agent), link)
        self.program = program

    @property
    def agent(self) -> str:
        """Its full name, which may have slashes."""
        return self.options.name

    def close(self, error: BaseException | None = None) -> None:
        """Not ours to end."""

    def _ensure_spawned(self) -> None:
        self._link.connect()


def environment(scope: Scope) -> dict[str, str]:
    """Variables for a child process whose agents are to be children of this program, on the same kernel."""
    config: Config = scope.link.config
    token = {"AIOS_TOKEN": config.token} if config.token else {}
    return {"AIOS_KERNEL": str(socket_of(config)), _PARENT: f"{scope.program}:{scope.agent}", **token}


def parent_program() -> tuple[str, str] | None:
    """Id and full name of the program that this process was started for, or None."""
    text = os.environ.get(_PARENT)
    if not text:
        return None
    program, _, agent = text.partition(":")
    if not program or not agent:
        raise ConfigError(f"{_PARENT} is {text!r} and not PROGRAM:AGENT", fix=f"unset {_PARENT}")
    return program, agent
