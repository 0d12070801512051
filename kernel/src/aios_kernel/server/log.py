"""The log of a kernel: no secrets in its lines, and for one that nobody's terminal shows a file that stays small."""

from __future__ import annotations

import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from aios_kernel.access.redaction import redacted

_BYTES = 4 << 20
_KEPT = 3


class LogFormat(logging.Formatter):
    """Lines of the log, tracebacks included, without what looks like a key, a token or a password."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redacted(super().format(record))


class KernelLog(RotatingFileHandler):
    """Standard output and error go into the same file, and follow it when it is turned over."""

    def __init__(self, path: Path, most_bytes: int = _BYTES) -> None:
        super().__init__(path, maxBytes=most_bytes, backupCount=_KEPT, encoding="utf-8")
        self._lead()

    def doRollover(self) -> None:
        """Begin a new file; the last ones stay as `.1` to `.3`."""
        super().doRollover()
        self._lead()

    def _lead(self) -> None:
        assert self.stream is not None  # it is opened at once
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor in (1, 2):
            os.dup2(self.stream.fileno(), descriptor)
