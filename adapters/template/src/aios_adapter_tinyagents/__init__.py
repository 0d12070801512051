"""The adapter of tinyagents, the framework of docs/write-an-adapter.md. Copy this folder, and rename."""
