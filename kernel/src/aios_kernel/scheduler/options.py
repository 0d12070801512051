"""Reading a policy's options: unknown names and impossible values are errors of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.protocol import Options


def check_known(policy: str, options: Options, known: Mapping[str, str]) -> None:
    """Refuse options that a policy does not have; `known` names them with a word on each. Raises ConfigError."""
    for name in options:
        if name not in known:
            offered = "; ".join(f"{key}: {what}" for key, what in known.items()) or "it takes none"
            raise ConfigError(f'policy "{policy}" has no option "{name}" ({offered})', fix="edit policy_options")


def whole_number(policy: str, options: Options, name: str, default: int, *, least: int) -> int:
    """An integer option. Raises ConfigError for anything else, or when it is below `least`."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f'{name} = {value!r} of policy "{policy}" must be an integer of at least {least}', fix="edit policy_options"
        )
    return value


def number(policy: str, options: Options, name: str, default: float, *, least: float) -> float:
    """A number as an option. Raises ConfigError for anything else, or when it is below `least`."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise ConfigError(
            f'{name} = {value!r} of policy "{policy}" must be a number of at least {least:g}', fix="edit policy_options"
        )
    return float(value)


def one_of(policy: str, options: Options, name: str, choices: Sequence[str]) -> str:
    """An option that is one of several words, the first by default. Raises ConfigError for anything else."""
    value = options.get(name, choices[0])
    if value not in choices:
        raise ConfigError(
            f'{name} = {value!r} of policy "{policy}" must be one of {", ".join(choices)}', fix="edit policy_options"
        )
    return str(value)


def switch(policy: str, options: Options, name: str) -> bool:
    """An option that is on or off. Raises ConfigError for anything but a boolean."""
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f'{name} = {value!r} of policy "{policy}" must be true or false', fix="edit policy_options")
    return value
