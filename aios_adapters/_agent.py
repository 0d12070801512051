"""`agent`: the decorator that puts a function, a class or a built object under the kernel."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack, overload

from aios_adapters import _steps
from aios_adapters._kernel import KernelLink, link_for
from aios_adapters._options import AgentOptions, Options, RunOptions
from aios_adapters._scope import Scope, current
from aios_adapters.plugins import host
from aios_kernel.config import Config, load

T = TypeVar("T")


@overload
def agent(target: T, **options: Unpack[Options]) -> T: ...


@overload
def agent(**options: Unpack[Options]) -> Callable[[T], T]: ...


def agent(target: Any = None, **options: Unpack[Options]) -> Any:
    """Run an agent's LLM, tool and memory calls through the kernel. Nothing else in its code changes.

    Use it as a decorator on a function, coroutine function, generator, async generator or class, or call it on a
    built object (a LangGraph graph, an AutoGen team): `team = aios.agent(team, name="team")`.

    Args:
        target: what to wrap; None makes a decorator.
        **options: all optional:

            name: the agent's name; default the target's own.
            priority: `interactive`, `normal` or `batch`.
            group: the trust domain: agents that share memory, prefix cache and scheduling share.
            budget: tokens (prompts and answers) that one run may use with all agents inside it; then its model
                calls raise BudgetExceeded, and an answer ends at the last token of it. Calls that are open at once
                may each use what is left.
            deadline: seconds that one run may take; then its syscalls raise DeadlineExceeded.
            lora: a LoRA adapter of the served model, by its name in the kernel (`aios serve --lora NAME=PATH`). A model
                name in the agent's code that is an adapter's means the same, and goes before it.
            memory: overrides where framework memory lives: `kernel`, `mediated` or `off`.
            tools: names of the tools that it and the agents inside it may call; others raise AccessDenied, which
                comes back as the framework's tool error. None: all.
            tool_limits: `ToolLimit`s by the names of tools that run in agents' processes: how many calls run at a time,
                and which tools exclude each other. What the kernel's tools file says comes first.
            models: model names that the agent's code uses, mapped to those that the kernel is asked for.
            window: what becomes of conversations that outgrow the model's window: `refuse` (an error),
                `drop_oldest_turns` or `summarise` (by the model). The system prompt, the tools and the last step
                always stay, and what is left out is told in the result and logged. None: the kernel's setting.
            kernel: overrides `AIOS_KERNEL` for this agent.

    Raises:
        ConfigError: an option's value is none that there is.
        TypeError: there is no such option.
    """
    given = dict(options)
    kernel = options.pop("kernel", None)
    if target is None:
        AgentOptions.of("", options)  # a wrong option is refused where it is written
        return functools.partial(agent, **given)
    runner = Runner(AgentOptions.of(options.get("name") or _name_of(target), options), kernel)
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
        if outer is not None and outer.link is not link:
            outer = None  # another kernel knows nothing of that run
        if outer is None and self._adopt is not None:
            outer = self._adopt(link)
        return Scope(self.options, link, outer), True

    def _config(self) -> Config:
        return load({"kernel": self._kernel})


@contextmanager
def running(name: str, **options: Unpack[RunOptions]) -> Generator[Scope | None]:
    """A scope as a `with` block, for code that is no function (notebooks, scripts). See `agent` for the options."""
    kernel = options.pop("kernel", None)
    runner = Runner(AgentOptions.of(name, options), kernel)
    scope, new = runner.begin()
    if scope is None:
        yield None
        return
    with scope.on(), _steps.closing(scope, new):
        yield scope


def _name_of(target: Any) -> str:
    name = getattr(target, "__name__", None) or getattr(target, "name", None)
    return name if isinstance(name, str) and name else type(target).__name__
