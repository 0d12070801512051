"""The kernel that agents of every framework share: scheduler, contexts, memory, storage, tools and access.

The client side is `syscalls`, `client`, `errors`, `config` and `openai_wire`; it needs nothing but msgspec and pluggy.
"""
