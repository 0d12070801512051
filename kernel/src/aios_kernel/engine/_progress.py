"""Progress of downloads and loading: one bar at a time for a person at a terminal, nothing in logs and pipes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

_SHOWN = "huggingface_hub.snapshot_download"
"""The hub client's name for its bar of all bytes on disk; it has others, of files and of bytes on the wire."""


@contextlib.contextmanager
def progress_bars() -> Generator[None]:
    """Inside, transformers draws its bar on a terminal only (the hub's client looks by itself)."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    if before and not _at_terminal():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def download_bar() -> Any:
    """The class of bars for `snapshot_download`: of several bars that it would draw, one is left."""
    from huggingface_hub.utils.tqdm import tqdm

    class DownloadBar(tqdm):  # the base is imported late: the hub's client takes a while
        """The hub's bar, unless it is one too many."""

        def __init__(self, *args: Any, **options: Any) -> None:
            if options.get("name") != _SHOWN or not _at_terminal():
                options["disable"] = True
            super().__init__(*args, **options)

    return DownloadBar


def _at_terminal() -> bool:
    # Without a console (pythonw, a daemon) there may be no stderr at all.
    return sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison]
