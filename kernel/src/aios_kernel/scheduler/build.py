"""The policy that a configuration asks for: its groups share the engine, and its limits lie around everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from aios_kernel.config import Config
from aios_kernel.scheduler.groups import Groups
from aios_kernel.scheduler.limits import Limited, Meters
from aios_kernel.scheduler.protocol import Options, Policy

MakePolicy: TypeAlias = Callable[[str, Options], Policy]


def with_limits(config: Config, make: MakePolicy) -> MakePolicy:
    """Makes policies as `make` does, with the configured groups inside and limits around.

    What agents have used counts on when the policy is changed. Raises ConfigError for a policy that is not known.
    """
    meters = Meters(config.limits)

    def made(name: str, options: Options) -> Policy:
        policy = make(name, options)
        if config.policy_groups:
            groups = config.policy_groups.items()
            policy = Groups(policy, {key: (make(each.policy, each.options), each.weight) for key, each in groups})
        return Limited(policy, meters) if config.limits else policy

    return made
