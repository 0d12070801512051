"""`agent`: the decorator that puts a function, a class or a built object under the kernel."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, get_args, overload

from aios_adapters import _steps
from aios_adapters._kernel import KernelLink, link_for
from aios_adapters._scope import AgentOptions, MemoryMode, Scope, current
from aios_adapters.plugins import host
from aios_kernel.config import Config, load
from aios_kernel.errors import ConfigError
from aios_kernel.syscalls import Priority, WindowStrategy

T = TypeVar("T")


@overload
def agent(
    target: T,
    *,
    name: str | None = None,
    priority: Priority = "normal",
    group: str | None = None,
    memory: MemoryMode | None = None,
    window: WindowStrategy | None = None,
    kernel: str | None = None,
) -> T: ...


@overload
def agent(
    *,
    name: str | None = None,
    priority: Priority = "normal",
    group: str | None = None,
    memory: MemoryMode | None = None,
    window: WindowStrategy | None = None,
    kernel: str | None = None,
) -> Callable[[T], T]: ...


def agent(
    target: Any = None,
    *,
    name: str | None = None,
    priority: Priority = "normal",
    group: str | None = None,
    memory: MemoryMode | None = None,
    window: WindowStrategy | None = None,
    kernel: str | None = None,
) -> Any:
    """Run an agent's LLM, tool and memory calls through the kernel. Nothing else in its code changes.

    Use it as a decorator on a function, coroutine function, generator, async generator or class, or call it on a
    built object (a LangGraph graph, an AutoGen team): `team = aios.agent(team, name="team")`.

    Args:
        target: what to wrap; None makes a decorator.
        name: the agent's name; default the target's own.
        priority: `interactive`, `normal` or `batch`.
        group: the trust domain: agents that share memory, prefix cache and scheduling share.
        memory: overrides where framework memory lives: `kernel`, `mediated` or `off`.
        window: what becomes of conversations that outgrow the model's window: `refuse` (an error), `drop_oldest_turns`
            or `summarise` (by the model). The system prompt, the tools and the last step always stay, and what is left
            out is told in the result and logged. None: the kernel's setting.
        kernel: overrides `AIOS_KERNEL` for this agent.

    Raises:
        ConfigError: there is no such window strategy.
    """
    check_window(window)
    if target is None:
        return functools.partial(
            agent, name=name, priority=priority, group=group, memory=memory, window=window, kernel=kernel
        )
    options = AgentOptions(name or _name_of(target), priority, group, memory=memory, window=window)
    runner = Runner(options, kernel)
    if isinstance(target, type):
        return _steps.wrap_class(target, runner)
    if inspect.isroutine(target):
        return _steps.wrap_function(target, runner)
    return _steps.wrap_object(target, runner)


class Runner:
    """Opens a scope for every run of one agent; calls inside a run of the same agent belong to that run."""

    def __init__(
        self, options: AgentOptions, kernel: str | None, adopt: Callable[[KernelLink], Scope] | None = None
    ) -> None:
        """`adopt` gives the parent of a scope that has none in this process."""
        self.options = options
        self._kernel = kernel
        self._adopt = adopt

    def begin(self) -> tuple[Scope | None, bool]:
        """The scope for a call that starts now, and whether it is new (and so must be closed). None: kernel is off."""
        outer = current()
        if outer is not None and outer.run_of is self.options:
            return outer, False
        config = self._config()
        if config.kernel == "off":
            return None, False
        if config.kernel == "passthrough" and self.options.memory not in ("off", "mediated"):
            self.options = dataclasses.replace(self.options, memory="mediated")  # the original keeps it
        plugins = host()
        plugins.activate()
        plugins.check()
        link = link_for(config, plugins)
        if outer is None and self._adopt is not None:
            outer = self._adopt(link)
        return Scope(self.options, link, outer), True

    def _config(self) -> Config:
        return load({"kernel": self._kernel})


@contextmanager
def running(name: str, **options: Any) -> Generator[Scope | None]:
    """A scope as a `with` block, for code that is no function (notebooks, scripts). See `agent` for the options."""
    kernel = options.pop("kernel", None)
    check_window(options.get("window"))
    runner = Runner(AgentOptions(name, **options), kernel)
    scope, new = runner.begin()
    if scope is None:
        yield None
        return
    with scope.on(), _steps.closing(scope, new):
        yield scope


def check_window(window: object) -> None:
    """Refuse a window strategy that there is not. Raises ConfigError."""
    known: tuple[str, ...] = get_args(WindowStrategy)
    if window is not None and window not in known:
        raise ConfigError(f"there is no window strategy {window!r}", fix=f"choose one of {', '.join(known)}")


def _name_of(target: Any) -> str:
    name = getattr(target, "__name__", None) or getattr(target, "name", None)
    return name if isinstance(name, str) and name else type(target).__name__
