"""Forcing recorded answers through the kernel: a plugin that swaps each chat for one with its text fixed."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from aios_adapters.hookspecs import hookimpl
from aios_evals.workloads.trajectory import Trajectory
from aios_kernel.syscalls import LlmChat, LlmResult


class KernelReplay:
    """Knows every agent's trajectory; the n-th answer is found by how many answers the history already has."""

    def __init__(self, runs: dict[str, Trajectory]) -> None:
        self._texts = {agent: [step.forced() for step in run.steps] for agent, run in runs.items()}
        self.argmax: dict[str, dict[int, list[int]]] = defaultdict(dict)

    @hookimpl
    def aios_llm_request(self, agent: str, framework: str, call: LlmChat) -> LlmChat | None:
        """Fix the text of a replaying agent's answer."""
        texts = self._texts.get(agent.partition("/")[0])
        if texts is None:
            return None
        sampling = msgspec.structs.replace(call.sampling, forced=texts[_position(call)])
        return msgspec.structs.replace(call, sampling=sampling)

    @hookimpl
    def aios_llm_result(self, agent: str, framework: str, call: LlmChat, result: LlmResult) -> None:
        """Note the model's own choices."""
        self.argmax[agent.partition("/")[0]][_position(call)] = result.argmax


def _position(call: LlmChat) -> int:
    return sum(message.role == "assistant" for message in call.messages)
