"""AutoGen AgentChat on the kernel: model clients, tools, memories, and the names of agents and teams."""
