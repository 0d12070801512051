"""Queues of device work beside the forward's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


class Lane(Protocol):
    """A queue of work: what is put in runs in order, beside what other queues do. Used by one thread at a time."""

    def mark(self) -> Any:
        """A point behind all that the calling thread has given the forward's queue so far."""
        ...

    def after(self, mark: Any) -> None:
        """Let what is put in from now on wait for a point."""
        ...

    def running(self) -> Any:
        """A context within which work goes into this queue."""
        ...

    def wait(self) -> None:
        """Return once everything that was put in is done."""
        ...


class CudaLane:
    """A CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> Any:
        """See `Lane.mark`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def after(self, mark: Any) -> None:
        """See `Lane.after`."""
        self._stream.wait_event(mark)

    @contextmanager
    def running(self) -> Generator[None]:
        """See `Lane.running`."""
        with torch.cuda.stream(self._stream):
            yield

    def wait(self) -> None:
        """See `Lane.wait`. Other threads run meanwhile."""
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        event.synchronize()


class HostLane:
    """The CPU, which has done everything when the call returns."""

    def mark(self) -> Any:
        """See `Lane.mark`."""
        return None

    def after(self, mark: Any) -> None:
        """See `Lane.after`."""

    @contextmanager
    def running(self) -> Generator[None]:
        """See `Lane.running`."""
        yield

    def wait(self) -> None:
        """See `Lane.wait`."""


def lane_on(device: torch.device) -> Lane:
    """A queue of a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()
