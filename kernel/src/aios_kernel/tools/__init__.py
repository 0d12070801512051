"""Tools that the kernel hosts, and leave for tools that run in the agents' processes."""

from aios_kernel.tools.grants import Expired, ToolGrants, check_allowed
from aios_kernel.tools.history import Latency
from aios_kernel.tools.hosted import HostedTool, Isolation
from aios_kernel.tools.registry import ToolRegistry

__all__ = ["Expired", "HostedTool", "Isolation", "Latency", "ToolGrants", "ToolRegistry", "check_allowed"]
