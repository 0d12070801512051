"""What a plugin of the entry-point group `aios_adapters` can provide. The docstrings are the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from aios_adapters.adapter import Adapter
    from aios_kernel.syscalls import LlmChat, LlmResult

hookspec = pluggy.HookspecMarker("aios_adapters")
hookimpl = pluggy.HookimplMarker("aios_adapters")


@hookspec
def aios_adapter() -> Adapter | None:  # type: ignore[empty-body]
    """Give the adapter of a framework."""


@hookspec(firstresult=True)
def aios_llm_request(agent: str, framework: str, call: LlmChat) -> LlmChat | None:  # type: ignore[empty-body]
    """Replace a chat before it is sent to the kernel; None leaves it as it is."""


@hookspec
def aios_llm_result(agent: str, framework: str, call: LlmChat, result: LlmResult) -> None:
    """Look at an answer, with the chat as it was sent; runs in the agent's process, before the agent sees it."""


@hookspec
def aios_commands(app: Any) -> None:
    """Add commands to the `aios` command line (a `typer.Typer`)."""
