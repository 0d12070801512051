"""Fair shares by a virtual token counter for each client (VTC; Sheng et al., OSDI 2024).

A client's counter grows with what is computed for it: prompt tokens (those found in the prefix cache cost nothing) and
generated tokens, weighted, divided by the client's weight. The waiting client with the smallest counter is served
first. Whoever comes back after having had nothing waiting is lifted to the smallest counter of those that wait: an
idle time is no credit. Nobody is held back while there is room, so the engine is never idle for the sake of fairness.

Between two clients that have calls waiting all the time, the weighted service differs by at most
2 * max(input_cost * longest prompt, output_cost * tokens of the pool), whatever happens (the paper's theorem 4.4);
swapping keeps it far below that: a newcomer pushes out calls of clients that are ahead of its own by `quantum`. What a
client that is ahead gets of a step's spare tokens is cut into small chunks, so that it does not slow others' decoding.

Options: `client` (`agent`, `group` or `program`), `input_cost` (1), `output_cost` (2), `quantum` (512),
`spare_chunk` (128) and `weight.NAME` of a client (1).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aios_kernel.scheduler.options import check_known, number, one_of, whole_number
from aios_kernel.scheduler.packing import Packer
from aios_kernel.scheduler.protocol import Arrived, Computed, Event, Finished, Options, Plan, Residency, Task, View

_OPTIONS = {
    "client": "whom the shares are for: agent, group or program",
    "input_cost": "of a prompt token",
    "output_cost": "of a generated token",
    "quantum": "lead in weighted tokens from which a client's calls are pushed out for another's",
    "spare_chunk": "prompt tokens in a step, beside others that decode, for clients ahead by more than the quantum",
    "weight.NAME": "share of a client",
}
_CLIENTS = ("agent", "group", "program")
_KEPT = 1024
"""Clients from which on those without open calls are looked through."""
_RESIDENT, _QUEUED = Residency.RESIDENT, Residency.QUEUED

Key: TypeAlias = tuple[float, int, float, int]
"""Counter, resident calls of the client, arrival, number; the smallest first."""


@dataclass(slots=True, eq=False)
class Client:
    """One that shares the engine. `counter` is its weighted service divided by its weight."""

    name: str
    weight: float
    counter: float = 0.0
    calls: int = 0
    waiting: OrderedDict[int, None] = field(default_factory=OrderedDict[int, None])
    """Its calls outside the pool, the first to come in in front."""
    entry: int | None = None
    """Its place in the heap of those that wait."""


class Fair:
    """Keeps clients in a heap by their counters: a decision costs what it serves, not what waits."""

    name = "fair"
    parks = False

    def __init__(self, options: Options) -> None:
        """Raises ConfigError for an option that is unknown or impossible."""
        weights = {name for name in options if name.startswith("weight.")}
        check_known(self.name, {name: options[name] for name in options if name not in weights}, _OPTIONS)
        self._by = one_of(self.name, options, "client", _CLIENTS)
        self._input_cost = number(self.name, options, "input_cost", 1.0, least=0.0)
        self._output_cost = number(self.name, options, "output_cost", 2.0, least=0.0)
        self._quantum = number(self.name, options, "quantum", 512.0, least=0.0)
        self._spare = whole_number(self.name, options, "spare_chunk", 128, least=1)
        self._weights = {
            name.removeprefix("weight."): number(self.name, options, name, 1.0, least=1e-6) for name in weights
        }
        self._most_weight = max((1.0, *self._weights.values()))
        self._clients: dict[str, Client] = {}
        self._of: dict[int, Client] = {}  # of an open call
        self._answering: set[int] = set()  # calls that have emitted something
        self._new: dict[int, None] = {}
        self._prune_at = _KEPT
        self._heap: list[tuple[float, int, Client]] = []
        self._entries = 0
        self._last = 0.0  # counter of the client that was the last to have nothing waiting any more

    def service(self, client: str) -> float:
        """Weighted tokens that a client has been given, or was counted as given when it was lifted."""
        found = self._clients.get(client)
        return found.counter * found.weight if found is not None else 0.0

    def observe(self, event: Event, now_s: float) -> None:
        """Count what was computed."""
        if isinstance(event, Arrived):
            if event.row is not None:
                self._take_in(event.row)
            else:
                self._new[event.task] = None
        elif isinstance(event, Computed):
            client = self._of.get(event.task)
            if client is not None:
                self._charge(client, event)
        elif isinstance(event, Finished):
            self._forget(event.task)

    def decide(self, view: View, now_s: float) -> Plan:
        """Serve the client with the smallest counter first, then the next."""
        tasks = view.by_id()
        self._meet(tasks)
        residents = self._residents(view)
        keys, counters = self._ranked_residents(residents)
        order = [tasks[key[-1]] for key in keys]
        least = min((client.counter for client in residents), default=0.0)
        ahead = least + self._quantum
        used: list[Client] = []
        ranked: Iterable[Task] = order
        if len(order) < view.max_batch or self._may_displace(order[view.max_batch - 1]):
            newcomers = self._newcomers(tasks, counters, used)
            ranked = (tasks[key[-1]] for key in heapq.merge(keys, newcomers))
        plan = Packer(
            view,
            ranked,
            self._is_ahead,
            residents=order,
            spare=self._spare,
            is_spare=lambda task: self._of[task.id].counter > ahead,
        ).fill()
        for client in used:
            self._stand(client)
        return plan

    # --- who is there -----------------------------------------------------------------------------------------------

    def _meet(self, tasks: Mapping[int, Task]) -> None:
        arrived = [tasks[number] for number in self._new if number in tasks]
        for task in arrived:
            del self._new[task.id]
            self._take_in(task)

    def _take_in(self, task: Task) -> None:
        name = task.agent if self._by == "agent" else task.group if self._by == "group" else task.program
        client = self._clients.get(name) or self._enter(name)
        self._of[task.id] = client
        client.calls += 1
        if not client.waiting:
            client.counter = max(client.counter, self._least())
        client.waiting[task.id] = None
        self._stand(client)

    def _enter(self, name: str) -> Client:
        if len(self._clients) >= self._prune_at:
            self._prune()
            self._prune_at = max(_KEPT, 2 * len(self._clients))
        client = self._clients[name] = Client(name, self._weights.get(name, 1.0))
        return client

    def _prune(self) -> None:
        """Forget idle clients that would be lifted anyway."""
        least = self._least()
        for client in [c for c in self._clients.values() if not c.calls and c.counter <= least]:
            del self._clients[client.name]

    def _forget(self, number: int) -> None:
        self._new.pop(number, None)
        client = self._of.pop(number, None)
        self._answering.discard(number)
        if client is not None:
            client.calls -= 1
            self._leave_queue(client, number)

    def _leave_queue(self, client: Client, number: int) -> None:
        if number in client.waiting:
            del client.waiting[number]
            if not client.waiting:
                self._last = client.counter
                client.entry = None

    def _residents(self, view: View) -> dict[Client, list[Task]]:
        """Calls in the pool by client, oldest first; those that were brought in or taken out since are moved."""
        found: dict[Client, list[Task]] = {}
        owners = self._of
        for task in view.active():
            client = owners.get(task.id)
            if client is None:
                continue
            if task.residency is _RESIDENT:
                if task.id in client.waiting:
                    self._leave_queue(client, task.id)
                theirs = found.get(client)
                if theirs is None:
                    found[client] = [task]
                else:
                    theirs.append(task)
            elif task.id not in client.waiting:
                client.waiting[task.id] = None
                client.waiting.move_to_end(task.id, last=False)
                self._stand(client)
        return found

    # --- counters ---------------------------------------------------------------------------------------------------

    def _charge(self, client: Client, event: Computed) -> None:
        prompt = event.tokens if event.task not in self._answering else 0
        if event.generated:
            self._answering.add(event.task)
        client.counter += (prompt * self._input_cost + event.generated * self._output_cost) / client.weight

    def _stand(self, client: Client) -> None:
        """Put a client with waiting calls into the heap, unless it is there."""
        if client.waiting and client.entry is None:
            heapq.heappush(self._heap, self._entry(client))

    def _entry(self, client: Client) -> tuple[float, int, Client]:
        """A new place of a client; an older one is void from now on."""
        self._entries += 1
        client.entry = self._entries
        return (client.counter, self._entries, client)

    def _first(self) -> Client | None:
        """The client with the smallest counter of those in the heap, where they stand by what they have now."""
        heap = self._heap
        while heap:
            counter, number, client = heap[0]
            if client.entry != number:
                heapq.heappop(heap)
            elif client.counter != counter:
                heapq.heapreplace(heap, self._entry(client))
            else:
                return client
        return None

    def _least(self) -> float:
        """The smallest counter of those that wait; if nobody does, that of the last who did."""
        client = self._first()
        return client.counter if client is not None else self._last

    def _may_displace(self, last: Task) -> bool:
        """Whether some call outside might take the last place in the batch, as far as counters tell."""
        other = self._of.get(last.id)
        first = self._first()
        return first is not None and (
            other is None or other.counter > first.counter + self._quantum / self._most_weight
        )

    def _is_ahead(self, newcomer: Task, victim: Task) -> bool:
        """Whether the victim's client is ahead of the newcomer's."""
        mine, other = self._of[newcomer.id], self._of[victim.id]
        return other.counter > mine.counter + self._quantum / mine.weight

    # --- the ranking ------------------------------------------------------------------------------------------------

    def _ranked_residents(self, residents: dict[Client, list[Task]]) -> tuple[list[Key], dict[Client, float]]:
        """Keys of calls in the pool, and how far their clients' counters will be once these have been served."""
        keys: list[Key] = []
        counters: dict[Client, float] = {}
        for client, tasks in residents.items():
            counter = client.counter
            for task in tasks:
                keys.append((counter, 0, task.arrived_s, task.id))
                counter += self._cost(task) / client.weight
            counters[client] = counter
        return sorted(keys), counters

    def _newcomers(self, tasks: Mapping[int, Task], counters: dict[Client, float], used: list[Client]) -> Iterator[Key]:
        """Keys of calls outside the pool, smallest first; `used` are clients that were taken out of the heap."""
        ready: list[tuple[float, int, float, int, Client, Iterator[Task]]] = []
        for client, counter in counters.items():
            if client.waiting:
                self._line_up(ready, client, counter, 1, self._outside(client, tasks))
        while True:
            while (least := self._next(counters, used)) is not None and (
                not ready or (least.counter, 0) < ready[0][:2]
            ):
                heapq.heappop(self._heap)
                least.entry = None
                used.append(least)
                self._line_up(ready, least, least.counter, 0, self._outside(least, tasks))
            if not ready:
                return
            counter, many, arrived, number, client, rest = heapq.heappop(ready)
            yield (counter, many, arrived, number)
            self._line_up(ready, client, counter + self._cost(tasks[number]) / client.weight, 1, rest)

    def _next(self, counters: dict[Client, float], used: list[Client]) -> Client | None:
        """The first client of the heap that has nothing in the pool."""
        while (client := self._first()) is not None:
            if client not in counters:
                return client
            client.entry = None
            used.append(client)
            heapq.heappop(self._heap)
        return None

    def _line_up(
        self,
        ready: list[tuple[float, int, float, int, Client, Iterator[Task]]],
        client: Client,
        counter: float,
        many: int,
        rest: Iterator[Task],
    ) -> None:
        task = next(rest, None)
        if task is not None:
            heapq.heappush(ready, (counter, many, task.arrived_s, task.id, client, rest))

    def _outside(self, client: Client, tasks: Mapping[int, Task]) -> Iterator[Task]:
        return (tasks[number] for number in client.waiting if number in tasks)

    def _cost(self, task: Task) -> float:
        return self._output_cost if task.generated else self._input_cost * task.pending
