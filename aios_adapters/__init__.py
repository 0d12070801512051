"""Wrap an agent with one decorator; its LLM, tool and memory calls become syscalls of a shared kernel.

import aios_adapters as aios

@aios.agent(name="researcher")
def main(): ...
"""

from aios_adapters import _handover, memory, tools, workflow
from aios_adapters._agent import agent, running
from aios_adapters._approvals import on_approval
from aios_adapters._branches import Branch, Branches, branches
from aios_adapters._notes import Memory
from aios_adapters._options import ToolLimit
from aios_adapters._scope import Scope, current
from aios_adapters.messages import areceive, asend, await_end, receive, send, wait
from aios_adapters.plugins import host

__all__ = [
    "Branch",
    "Branches",
    "Memory",
    "Scope",
    "ToolLimit",
    "agent",
    "areceive",
    "asend",
    "await_end",
    "branches",
    "current",
    "host",
    "memory",
    "on_approval",
    "receive",
    "running",
    "send",
    "tools",
    "wait",
    "workflow",
]

# The order of imports must not matter: frameworks imported later are hooked as they arrive.
host().activate()
# A process that was started inside a run belongs to it.
_handover.inherit()
