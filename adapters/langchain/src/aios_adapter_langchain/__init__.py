"""LangChain and LangGraph on the kernel. See `plugin` for what is hooked."""
