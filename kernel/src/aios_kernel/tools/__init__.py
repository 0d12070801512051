"""Tools that the kernel hosts, and leave for tools that run in the agents' processes."""

from aios_kernel.tools.grants import Expired, ToolGrants, check_allowed
from aios_kernel.tools.history import Latency
from aios_kernel.tools.hosted import Confine, Effects, EffectStatus, HostedTool, Isolation, Launch, Retry
from aios_kernel.tools.registry import ToolRegistry
from aios_kernel.tools.source import FixedTools, Offer, ToolSource

__all__ = [
    "Confine",
    "EffectStatus",
    "Effects",
    "Expired",
    "FixedTools",
    "HostedTool",
    "Isolation",
    "Latency",
    "Launch",
    "Offer",
    "Retry",
    "ToolGrants",
    "ToolRegistry",
    "ToolSource",
    "check_allowed",
]
