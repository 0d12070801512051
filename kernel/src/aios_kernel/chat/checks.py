"""What every call must hold to, whatever the model."""

from __future__ import annotations

from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import LlmChat

_CHOICES = frozenset({"auto", "none", "required"})


def check_chat(call: LlmChat) -> None:
    """Refuse a call that contradicts itself, whatever the model. Raises InvalidRequest."""
    if not call.messages:
        raise InvalidRequest("a chat needs at least one message", fix="pass messages=[...]")
    if is_plain(call):
        return
    names = [tool.name for tool in call.tools]
    if call.tool_choice not in _CHOICES and call.tool_choice not in names:
        offered = ", ".join(names) or "none"
        raise InvalidRequest(
            f'tool_choice names "{call.tool_choice}", but the tools offered are: {offered}',
            fix="offer that tool, or use tool_choice auto, none or required",
        )
    if call.tool_choice == "required" and not names:
        raise InvalidRequest('tool_choice is "required", but no tools are offered', fix="pass tools=[...]")
    _check_structure(call)


def is_plain(call: LlmChat) -> bool:
    """Whether a call offers no tools and asks for nothing but text: most do, and nothing in it can contradict."""
    structured = call.tools or call.choice or call.schema is not None or call.regex is not None
    return not structured and call.tool_choice in {"auto", "none"}


def _check_structure(call: LlmChat) -> None:
    asked = [name for name, value in _structures(call).items() if value]
    if len(asked) > 1:
        raise InvalidRequest(f"{' and '.join(asked)} cannot hold the same answer", fix="pass one of them")
    if asked and asked != ["schema"] and call.tool_choice not in {"auto", "none"}:
        raise InvalidRequest(
            f'{asked[0]} asks for text, but tool_choice "{call.tool_choice}" for a call', fix="pass one of them"
        )
    if "" in call.choice:
        raise InvalidRequest("one of the strings in choice is empty", fix="leave it out")


def _structures(call: LlmChat) -> dict[str, bool]:
    """What may hold the text of an answer, and whether the call asks for it."""
    return {"schema": call.schema is not None, "regex": call.regex is not None, "choice": bool(call.choice)}
