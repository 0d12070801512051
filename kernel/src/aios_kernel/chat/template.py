"""Chats as the model's own chat template writes them."""

from __future__ import annotations

import json
from typing import Any

import jinja2

from aios_kernel.chat.formats import ToolFormat
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import LlmChat, Message, ToolCall, ToolSpec

GENERIC_TEMPLATE = (
    "{{ bos_token | default('', true) }}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""For models without a chat template: `role: content` and an empty line, the roles spelled out."""

_TOOLS_INTRODUCTION = (
    "You may call these tools. To call one, answer with a JSON object inside tags, such as\n"
    "{example}\nSeveral calls may follow each other. The tools, one a line:\n"
)
_EXAMPLE = ToolCall(id="", name="tool", arguments='{"key": "value"}')


class ChatTemplate:
    """Renders the messages of a call, with tools and the generation prompt.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        tool_format: what that template does about tools.
    """

    def __init__(self, tokenizer: Any, tool_format: ToolFormat) -> None:
        self._tokenizer = tokenizer
        self._format = tool_format

    def render(self, call: LlmChat) -> str:
        """The prompt's text. Raises InvalidRequest for what the template refuses."""
        tools = call.tools if call.tool_choice != "none" else []
        if not self._format.native:
            return self._apply(self._told(call.messages, tools), None)
        specs = [_tool(tool) for tool in tools] or None
        try:
            return self._apply([self._message(message) for message in call.messages], specs)
        except InvalidRequest:
            # Some templates (Llama 3) know one tool call a turn only: then the turn is written as several.
            if all(len(message.tool_calls) < 2 for message in call.messages):
                raise
            return self._apply([self._message(message) for message in _one_call_a_turn(call.messages)], specs)

    def _apply(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}",
                fix="check the order and the roles of the messages",
            ) from error

    def _message(self, message: Message) -> dict[str, Any]:
        out: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            out["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            out["tool_call_id"] = self._format.call_id(message.tool_call_id)
        if message.name is not None:
            out["name"] = message.name
        return out

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": _arguments(call.arguments)}
        return {"id": self._format.call_id(call.id), "type": "function", "function": function}

    def _told(self, messages: list[Message], tools: list[ToolSpec]) -> list[dict[str, Any]]:
        """Messages for a template that knows neither tools nor their results: all is said in plain text."""
        out = [self._plain(message) for message in messages]
        if not tools:
            return out
        listing = "\n".join(json.dumps(_tool(tool)["function"], ensure_ascii=False) for tool in tools)
        text = _TOOLS_INTRODUCTION.format(example=self._format.write(_EXAMPLE)) + listing
        if out and out[0]["role"] == "system":
            return [{"role": "system", "content": f"{out[0]['content']}\n\n{text}"}, *out[1:]]
        return [{"role": "system", "content": text}, *out]

    def _plain(self, message: Message) -> dict[str, Any]:
        if message.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{message.content}\n</tool_response>"}
        calls = [self._format.write(call) for call in message.tool_calls]
        return {"role": message.role, "content": "\n".join([message.content, *calls] if message.content else calls)}


def _arguments(text: str) -> Any:
    """Arguments as templates want them: an object when they are one, else the text as the model wrote it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def _one_call_a_turn(messages: list[Message]) -> list[Message]:
    """Split turns with several tool calls; each part is followed by its own result."""
    results = {m.tool_call_id: m for m in messages if m.role == "tool" and m.tool_call_id is not None}
    split = {call.id for m in messages if len(m.tool_calls) > 1 for call in m.tool_calls}
    out: list[Message] = []
    for message in messages:
        if len(message.tool_calls) > 1:
            for index, call in enumerate(message.tool_calls):
                content = message.content if index == 0 else ""
                out.append(Message(role="assistant", content=content, tool_calls=[call]))
                if call.id in results:
                    out.append(results[call.id])
        elif not (message.role == "tool" and message.tool_call_id in split):
            out.append(message)
    return out
