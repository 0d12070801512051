"""Handing a run over to a child process: which kernel to join, and whose child its agents are.

A process that was started inside a run belongs to it: its agents are children of the run's program, and calls that no
agent of its own makes are the run's. It learns that from its environment, or from what it unpickles first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from aios_adapters import _scope
from aios_adapters._kernel import KernelLink, link_for
from aios_adapters._options import AgentOptions
from aios_adapters._scope import Scope
from aios_adapters.plugins import host
from aios_kernel.config import Config, is_url, load, socket_of
from aios_kernel.errors import ConfigError

PARENT = "AIOS_PARENT"
_OPTIONS = "AIOS_PARENT_OPTIONS"


class Foreign(Scope):
    """A program of another process, as the parent of scopes here; that process registers and ends it."""

    def __init__(self, program: str, agent: str, link: KernelLink, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(AgentOptions.of(agent, options or {}), link)
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
    """Variables for a child process that is to belong to this run, on the same kernel."""
    config: Config = scope.link.config
    variables = {"AIOS_KERNEL": config.kernel if is_url(config.kernel) else str(socket_of(config))}
    if config.kernel == "passthrough":  # not the kernel alone: the child's calls pass, too
        variables = {"AIOS_KERNEL": config.kernel} | ({"AIOS_HOME": config.home} if config.home else {})
    token = {"AIOS_TOKEN": config.token} if config.token else {}
    told = {_OPTIONS: json.dumps(options)} if (options := scope.lasting_options()) else {}
    return {**variables, PARENT: f"{scope.program}:{scope.agent}", **told, **token}


def parent_program() -> tuple[str, str] | None:
    """Id and full name of the program that this process was started for, or None."""
    text = os.environ.get(PARENT)
    if not text:
        return None
    program, _, agent = text.partition(":")
    if not program or not agent:
        raise ConfigError(f"{PARENT} is {text!r} and not PROGRAM:AGENT", fix=f"unset {PARENT}")
    return program, agent


def inherit() -> None:
    """Put this process into the run that its environment names, if it names one. Raises ConfigError."""
    _scope.set_process_scope(inherited())


def inherited() -> Scope | None:
    """The run that the environment names, as a scope; None: no run, or the kernel is off."""
    parent = parent_program()
    if parent is None:  # without a look at the configuration: a wrong one is no reason why nothing can be imported
        return None
    config = load()
    if config.kernel == "off":
        return None
    try:
        options = json.loads(os.environ.get(_OPTIONS) or "{}")
    except ValueError as error:
        raise ConfigError(f"{_OPTIONS} is no JSON: {error}", fix=f"unset {_OPTIONS}") from error
    return Foreign(*parent, link_for(config, host()), options)


def adopt(variables: Mapping[str, str]) -> None:
    """Put this process into the run that these variables name; what its own children inherit, too."""
    os.environ.update(variables)
    inherit()


class Passport:
    """Travels with a pickled object and puts the process that unpickles it into the run."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = dict(variables)

    def __reduce__(self) -> Any:
        return _arrived, (self.variables,)


def _arrived(variables: Mapping[str, str]) -> Passport:
    adopt(variables)
    return Passport(variables)


class HandedOver:
    """A function for a worker process that serves many runs: each call belongs to the run that made it."""

    def __init__(self, variables: Mapping[str, str], function: Callable[..., Any]) -> None:
        self._variables = dict(variables)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = {name: os.environ.get(name) for name in self._variables}
        os.environ.update(self._variables)
        try:
            scope = inherited()
            if scope is None:
                return self._function(*args, **kwargs)
            with scope.on():
                return self._function(*args, **kwargs)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
