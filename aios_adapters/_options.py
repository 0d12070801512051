"""What the decorator can be told about an agent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from aios_kernel.errors import ConfigError
from aios_kernel.syscalls import Priority, WindowStrategy

MemoryMode = Literal["kernel", "mediated", "off"]


@dataclass(frozen=True, slots=True)
class ToolLimit:
    """A limit on calls of a tool that runs in agents' processes; calls beyond it wait for their turn.

    Attributes:
        max_running: calls of the tool at a time, by all agents of the user that say so; None: any number.
        exclusive: a group of tools of which one call runs at a time, whoever's; None: none.
    """

    max_running: int | None = None
    exclusive: str | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing. Raises ConfigError."""
        _check_limit("max_running", self.max_running, int)


class RunOptions(TypedDict, total=False):
    """The keyword arguments of `aios.running`; `aios.agent` documents them."""

    priority: Priority
    group: str | None
    memory: MemoryMode | None
    window: WindowStrategy | None
    budget: int | None
    deadline: float | None
    lora: str | None
    tools: Collection[str] | None
    tool_limits: Mapping[str, ToolLimit] | None
    models: Mapping[str, str] | None
    kernel: str | None


class Options(RunOptions, total=False):
    """The keyword arguments of `aios.agent`."""

    name: str | None


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What the decorator was told about an agent.

    Attributes:
        memory: `kernel`: memory objects that live in the process are kept by the kernel; `mediated`: they stay
            where they are and each access passes the kernel; `off`: memory is not touched. None: the adapter's rule.
        window: for conversations that outgrow the model's window; None: the outer agent's, or the kernel's.
        budget: tokens of one run, its children included.
        deadline: seconds of one run, its children included.
        lora: the model's LoRA adapter, by its name in the kernel; None: the outer agent's.
        tools: names of the tools that it may call; None: those that the outer agent may.
        tool_limits: limits of tools by their names; the outer agent's come after.
        models: model names that it uses, mapped to those that are asked for instead; the outer agent's come after.
    """

    name: str
    priority: Priority = "normal"
    group: str | None = None
    framework: str = ""
    memory: MemoryMode | None = None
    window: WindowStrategy | None = None
    budget: int | None = None
    deadline: float | None = None
    lora: str | None = None
    tools: Collection[str] | None = None
    tool_limits: Mapping[str, ToolLimit] | None = None
    models: Mapping[str, str] | None = None

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> AgentOptions:
        """From keyword arguments. Raises ConfigError, and TypeError for one that there is not."""
        given: dict[str, Any] = {**options, "name": name}
        return cls(**given)

    def __post_init__(self) -> None:
        """Refuse what means nothing. Raises ConfigError."""
        _check_choice("priority", self.priority, get_args(Priority))
        _check_choice("memory mode", self.memory, get_args(MemoryMode))
        _check_choice("window strategy", self.window, get_args(WindowStrategy))
        _check_limit("budget", self.budget, int)
        _check_limit("deadline", self.deadline, int | float)
        if isinstance(self.tools, str):
            raise ConfigError(f"tools is the text {self.tools!r}", fix=f"tools=[{self.tools!r}]")


def _check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"there is no {what} {value!r}", fix=f"choose one of {', '.join(known)}")


def _check_limit(what: str, value: Any, kind: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf):
        raise ConfigError(f"{what} is {value!r}; it must be a number greater than 0", fix=f"change {what}, or leave it")
