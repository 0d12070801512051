"""An orderly end for benches that are told to stop: what they started is ended with them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from types import FrameType


@contextlib.contextmanager
def ended_in_order() -> Generator[None, None, None]:
    """Let SIGTERM unwind the stack, as ctrl-C does, so that servers and kernels are closed. For the main thread."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
