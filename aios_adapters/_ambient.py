"""The scope of ready-made objects, such as a store that somebody chose openly: the agent's that is on, or their own."""

from __future__ import annotations

import threading

from aios_adapters._kernel import link_for
from aios_adapters._scope import AgentOptions, Scope, current
from aios_adapters.plugins import host
from aios_kernel.config import load
from aios_kernel.errors import ConfigError


class _Runs:
    """The runs of this process that no decorator began: one an agent, for as long as its kernel is the same."""

    def __init__(self) -> None:
        self._scopes: dict[str, Scope] = {}
        self._lock = threading.Lock()

    def scope(self, agent: str, framework: str) -> Scope:
        config = load()
        if config.kernel == "off":
            raise ConfigError(
                f"what agent {agent} uses is kept by the kernel, and the kernel is switched off",
                fix="unset AIOS_KERNEL",
            )
        link = link_for(config, host())
        with self._lock:
            scope = self._scopes.get(agent)
            if scope is None or scope.link is not link:
                scope = self._scopes[agent] = Scope(AgentOptions(agent, framework=framework), link)
            return scope


_runs = _Runs()


def ambient(agent: str, framework: str) -> Scope:
    """The scope in which a ready-made object makes its syscalls: the one that is on, else that of `agent`.

    Args:
        agent: for whom, where no decorated agent is on; all objects of this process that name it share its run.
        framework: the adapter whose object it is.

    Raises:
        ConfigError: the kernel is switched off.
    """
    scope = current()
    if scope is None:
        return _runs.scope(agent, framework)
    scope.framework = scope.framework or framework
    return scope
