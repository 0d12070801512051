"""Isolation levels of hosted tools: how their processes are kept from the kernel, its data and the machine."""
