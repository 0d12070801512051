"""A memory that is no role's, kept under its own name."""

from __future__ import annotations

from typing import Any

import aios_adapters as aios
from aios_adapters.testing import KernelHandle


def test_it_is_found_by_name_in_a_later_run(kernel: KernelHandle, metagpt: Any) -> None:
    from aios_adapter_metagpt.kernel_memory import KernelMemory

    @aios.agent(name="desk", memory="off")
    def write() -> None:
        KernelMemory(aios_name="minutes").add(metagpt.Message(content="we met", role="user"))

    @aios.agent(name="desk", memory="off")
    def read(name: str) -> list[str]:
        return [message.content for message in KernelMemory(aios_name=name).get()]

    write()
    assert (read("minutes"), read("other")) == (["we met"], [])
    plain = KernelMemory()
    plain.add(metagpt.Message(content="outside", role="user"))
    assert plain.count() == 1
