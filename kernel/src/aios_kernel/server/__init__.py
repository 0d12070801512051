"""The doors of the kernel process: unix socket, OpenAI-compatible HTTP, and the process itself."""
