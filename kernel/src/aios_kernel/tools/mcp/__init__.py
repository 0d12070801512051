"""Tools of MCP servers (Model Context Protocol): sessions, and the definitions that a person has approved."""

from aios_kernel.tools.mcp.source import McpTools, mcp_tools

__all__ = ["McpTools", "mcp_tools"]
