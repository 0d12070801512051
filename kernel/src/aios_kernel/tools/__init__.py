"""Tools that the kernel hosts, and leave for tools that run in the agents' processes."""

from aios_kernel.tools.grants import Expired, ToolGrants, ToolRequest, check_allowed
from aios_kernel.tools.history import Latency
from aios_kernel.tools.hosted import Confine, Effects, EffectStatus, HostedTool, Isolation, Launch, Retry
from aios_kernel.tools.job_life import told as job_told
from aios_kernel.tools.job_table import JobRow
from aios_kernel.tools.jobs import JobManager
from aios_kernel.tools.registry import Caller, ToolRegistry
from aios_kernel.tools.runner import TimeLimit, no_place
from aios_kernel.tools.slots import Demand, Slots
from aios_kernel.tools.source import FixedTools, Offer, ToolSource
from aios_kernel.tools.store import ToolStore

__all__ = [
    "Caller",
    "Confine",
    "Demand",
    "EffectStatus",
    "Effects",
    "Expired",
    "FixedTools",
    "HostedTool",
    "Isolation",
    "JobManager",
    "JobRow",
    "Latency",
    "Launch",
    "Offer",
    "Retry",
    "Slots",
    "TimeLimit",
    "ToolGrants",
    "ToolRegistry",
    "ToolRequest",
    "ToolSource",
    "ToolStore",
    "check_allowed",
    "job_told",
    "no_place",
]
