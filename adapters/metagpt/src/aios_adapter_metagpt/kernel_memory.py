"""`KernelMemory`: a memory of MetaGPT that is no role's, kept by the kernel under a name of its own."""

from __future__ import annotations

from metagpt.memory import Memory


class KernelMemory(Memory):
    """`KernelMemory(aios_name="minutes")`: the agent's next process finds what this one put in.

    Inside an agent the kernel keeps it whatever the decorator's `memory=` says; outside it is a `Memory`.
    """

    aios_name: str = "memory"
