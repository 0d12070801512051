"""The options of the program policy."""

from __future__ import annotations

from dataclasses import dataclass

from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.options import check_known, whole_number
from aios_kernel.scheduler.protocol import Options

_OPTIONS = {
    "order": "who is admitted first: rest (soonest through, with ageing), service (least attained) or arrival",
    "stretch": "order = rest: how many times its expected rest a program may be overtaken by later ones",
    "hold": "how many times its recomputing a context is kept over a pause while others wait",
    "swap_speed": "how many times faster the engine swaps a context than it computes one anew",
    "grow": "share of the predicted growth of admitted programs that is kept free of new ones",
    "margin": "tokens of room kept for a running call to grow",
    "prefetch": "whether swapped contexts come back before their next call",
    "chunk": "prefill tokens of a step while others decode",
    "backlog": "prefill tokens in progress beyond which no other call is admitted",
    "preempt": "whether a better class takes the place of calls and contexts of a worse one",
    "patience": "how many mean stays of a program a call waits until nobody overtakes it",
    "decode_weight": "service of a generated token, in prefilled ones",
}
_ORDERS = ("rest", "service", "arrival")


@dataclass(frozen=True, slots=True)
class Knobs:
    """See `_OPTIONS`; docs/scheduling.md shows what each is worth."""

    order: str = "rest"
    stretch: float = 4.0
    hold: float = 30.0
    swap_speed: float = 12.0
    grow: float = 0.15
    margin: int = 1024
    prefetch: bool = True
    chunk: int = 128
    backlog: int = 32_768
    preempt: bool = True
    patience: float = 16.0
    decode_weight: float = 50.0

    @classmethod
    def read(cls, policy: str, options: Options) -> Knobs:
        """From the configuration. Raises ConfigError for an option that is unknown or impossible."""
        check_known(policy, options, _OPTIONS)
        base = cls()
        order = options.get("order", base.order)
        if order not in _ORDERS:
            raise _impossible(policy, "order", order, ", ".join(_ORDERS[:-1]) + f" or {_ORDERS[-1]}")
        return cls(
            str(order),
            _number(policy, options, "stretch", base.stretch),
            _number(policy, options, "hold", base.hold),
            _number(policy, options, "swap_speed", base.swap_speed),
            _number(policy, options, "grow", base.grow),
            whole_number(policy, options, "margin", base.margin, least=0),
            _truth(policy, options, "prefetch"),
            whole_number(policy, options, "chunk", base.chunk, least=1),
            whole_number(policy, options, "backlog", base.backlog, least=0),
            _truth(policy, options, "preempt"),
            _number(policy, options, "patience", base.patience),
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
