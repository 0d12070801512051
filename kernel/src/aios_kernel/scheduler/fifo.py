"""First in, first out: the oldest calls run, as many at once as fit; the rest wait in the order of their arrival."""

from __future__ import annotations

from aios_kernel.scheduler.options import check_known
from aios_kernel.scheduler.packing import Packer
from aios_kernel.scheduler.protocol import Event, Options, Plan, Residency, View


class Fifo:
    """Stateless. When decoding outgrows the pool, the newest call is swapped out and comes back first."""

    name = "fifo"
    parks = False

    def __init__(self, options: Options) -> None:
        """Takes no options; raises ConfigError when there are some."""
        check_known(self.name, options, {})

    def observe(self, event: Event, now_s: float) -> None:
        """Nothing to remember: the view is in order of arrival."""

    def decide(self, view: View, now_s: float) -> Plan:
        """Serve in order of arrival."""
        residents = [task for task in view.active() if task.residency is Residency.RESIDENT]
        return Packer(view, view.tasks, residents=residents).fill()
