"""The shelves of the spaces that are in use: filled from the rows at the first search, then kept up with them."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias, Union, cast, final

import apsw

from aios_kernel.memory.index import Space, Vector
from aios_kernel.memory.reading import number_of, stock
from aios_kernel.memory.shelf import Entry, Shelf

_MAX_BYTES: Final = 3 << 30
_MAX_VECTORS: Final = 200_000


class Gone(NamedTuple):
    """A note is found no more."""

    id: str


class Revectored(NamedTuple):
    """A note was embedded by the present model."""

    id: str
    vector: Vector


Event: TypeAlias = Union[Entry, Gone, Revectored]


@final
class Shelves:
    """Shelves by space; the least recently used are dropped beyond about `max_bytes`.

    `changed` and `forget` may be called from any thread, `of` from one only.

    Args:
        model: the embedder's name; vectors of another one are left out.
        max_vectors: a space with more has its vectors searched by the index, not here.
    """

    def __init__(self, model: str, *, max_bytes: int = _MAX_BYTES, max_vectors: int = _MAX_VECTORS) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._max_vectors = max_vectors
        self._known: OrderedDict[Space, Shelf] = OrderedDict()
        self._bytes: dict[Space, int] = {}
        self._total = 0
        self._events: dict[Space, list[Event]] = {}  # committed, not on the shelf yet; only of known spaces
        self._lock = threading.Lock()

    def changed(self, space: Space, event: Event, *, first: bool = False) -> int:
        """Tell of a committed change, in the order of the commits; gives how many wait for the next `of`.

        Args:
            space: where.
            event: what.
            first: the space had no notes at all before, so that its shelf need not be filled from the rows.
        """
        with self._lock:
            if first and space not in self._events:
                self._known[space] = Shelf()
                self._events[space] = []
            if space not in self._events:
                return 0
            self._events[space].append(event)
            return len(self._events[space])

    def forget(self, space: Space) -> None:
        """So much has changed that the shelf is to be filled anew."""
        with self._lock:
            self._drop(space)

    def forget_all(self) -> None:
        """`forget` for every space."""
        with self._lock:
            for space in list(self._events):
                self._drop(space)

    def of(self, db: apsw.Connection, space: Space) -> Shelf:
        """The shelf of a space with every change that was told before; call it before other reads of `db`'s view."""
        with self._lock:
            shelf, events = self._known.get(space), self._events.get(space, [])
            self._events[space] = []
            if shelf is not None:
                self._known.move_to_end(space)
        if shelf is None or not self._follow(shelf, events):
            shelf = self._filled(db, space)
        with self._lock:
            if space in self._events:  # not forgotten meanwhile
                self._known[space] = shelf
                self._total += shelf.size_bytes - self._bytes.get(space, 0)
                self._bytes[space] = shelf.size_bytes
                self._bound()
        return shelf

    def _filled(self, db: apsw.Connection, space: Space) -> Shelf:
        # Changes from here on wait among the events; the view of the rows, which the next read fixes, may hold some of
        # them already. A shelf that takes them a second time is the same afterwards.
        number = number_of(db, space)
        (total,) = db.execute("SELECT count(*) FROM notes WHERE space = ? AND model IS NOT NULL", (number,))
        shelf = Shelf(with_vectors=total[0] <= self._max_vectors)
        shelf.fill(stock(db, number, self._model))
        return shelf

    def _follow(self, shelf: Shelf, events: Iterable[Event]) -> bool:
        for kind, group in itertools.groupby(events, type):
            some = list(group)
            if kind is Entry and not shelf.take(cast("list[Entry]", some)):
                return False
            for event in some:
                if isinstance(event, Gone):
                    shelf.remove(event.id)
                elif isinstance(event, Revectored):
                    shelf.revector(event.id, event.vector)
        return not shelf.worn and (len(shelf.slot_of) <= self._max_vectors or not shelf.with_vectors)

    def _bound(self) -> None:
        while self._total > self._max_bytes and len(self._known) > 1:
            self._drop(next(iter(self._known)))

    def _drop(self, space: Space) -> None:
        self._known.pop(space, None)
        self._events.pop(space, None)
        self._total -= self._bytes.pop(space, 0)
