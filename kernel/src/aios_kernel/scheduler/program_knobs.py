"""The options of the program policy."""

from __future__ import annotations

from dataclasses import dataclass

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.options import check_known, whole_number
from aios_kernel.scheduler.protocol import Options

_OPTIONS = {
    "order": "who is admitted first: service (least attained) or arrival",
    "hold": "how many times its recomputing a context is kept over a pause while others wait",
    "swap_speed": "how many times faster the engine swaps a context than it computes one anew",
    "grow": "share of the predicted growth of admitted programs that is kept free of new ones",
    "margin": "tokens of room kept for a running call to grow",
    "yielding": "whether a context that gives way keeps what nobody needs of it",
    "prefetch": "whether swapped contexts come back before their next call",
    "chunk": "prefill tokens of a step while others decode",
    "backlog": "prefill tokens in progress beyond which no other call is admitted",
    "patience_s": "how long a call waits until nobody overtakes it",
    "decode_weight": "service of a generated token, in prefilled ones",
}


@dataclass(frozen=True, slots=True)
class Knobs:
    """See `_OPTIONS`; docs/scheduling.md shows what each is worth."""

    by_arrival: bool = False
    hold: float = 12.0
    swap_speed: float = 12.0
    grow: float = 0.3
    margin: int = 1024
    yielding: bool = True
    prefetch: bool = True
    chunk: int = 2048
    backlog: int = 32_768
    patience_s: float = 14_400.0
    decode_weight: float = 50.0

    @classmethod
    def read(cls, policy: str, options: Options) -> Knobs:
        """From the configuration. Raises ConfigError for an option that is unknown or impossible."""
        check_known(policy, options, _OPTIONS)
        order = options.get("order", "service")
        if order not in {"service", "arrival"}:
            raise _impossible(policy, "order", order, "service or arrival")
        base = cls()
        return cls(
            order == "arrival",
            _number(policy, options, "hold", base.hold),
            _number(policy, options, "swap_speed", base.swap_speed),
            _number(policy, options, "grow", base.grow),
            whole_number(policy, options, "margin", base.margin, least=0),
            _truth(policy, options, "yielding"),
            _truth(policy, options, "prefetch"),
            whole_number(policy, options, "chunk", base.chunk, least=1),
            whole_number(policy, options, "backlog", base.backlog, least=0),
            _number(policy, options, "patience_s", base.patience_s),
            _number(policy, options, "decode_weight", base.decode_weight),
        )


def _number(policy: str, options: Options, name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool | str) or not value >= 0:
        raise _impossible(policy, name, value, "a number of at least 0")
    return float(value)


def _truth(policy: str, options: Options, name: str) -> bool:
    value = options.get(name, True)
    if not isinstance(value, bool):
        raise _impossible(policy, name, value, "true or false")
    return value


def _impossible(policy: str, name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f'{name} = {value!r} of policy "{policy}" must be {wanted}', fix="edit policy_options")
