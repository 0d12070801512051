"""A model that can follow tools, for suites that need one: a script in front of the kernel's fake engine.

A chat that ends with a user's message and offers tools is answered by a call of the tool that was demanded, else of the
first: an argument is the first integer of the message, or what it has in quotes. An answer in JSON without a
schema has the keys that the message names in quotes. It knows nothing of the suites.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from aios_adapters.hookspecs import hookimpl
from aios_kernel.syscalls import LlmChat, Message


class Script:
    """A plugin of the adapters' host: it replaces the chat on its way to the kernel."""

    @hookimpl
    def aios_llm_request(self, agent: str, framework: str, call: LlmChat) -> LlmChat | None:
        last = call.messages[-1]
        if last.role != "user" or call.tool_choice == "none":
            return None
        if call.schema is not None and not call.schema.get("properties"):
            keys = re.findall(r"[`'\"](\w+)[`'\"]", last.content)
            return _ending(call, "json " + json.dumps(dict.fromkeys(keys, "text")))
        if not call.tools:
            return None
        tool = next((tool for tool in call.tools if tool.name == call.tool_choice), call.tools[0])
        return _ending(call, f"call {tool.name} {json.dumps(_arguments(tool.parameters, last.content))}")


def _ending(call: LlmChat, line: str) -> LlmChat:
    """The chat with another last message: what the fake engine shall answer."""
    return msgspec.structs.replace(call, messages=[*call.messages[:-1], Message("user", line)])


def _arguments(schema: dict[str, Any], prompt: str) -> dict[str, Any]:
    number = re.search(r"-?\d+", prompt)
    values: dict[str, Any] = {"integer": int(number.group()) if number else 1, "number": 1.5, "boolean": True}
    quoted = re.search(r"'([^']+)'", prompt)
    text = quoted.group(1) if quoted else "text"
    properties = schema.get("properties", {})
    return {name: values.get(properties[name].get("type"), text) for name in schema.get("required", properties)}
