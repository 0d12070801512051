"""The kernel as an MCP server: its memory, its storage and the tools that it hosts, each call a syscall of an agent."""
