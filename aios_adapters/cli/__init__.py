"""The `aios` command line. Thin: everything it shows comes from a kernel or from the plugin host."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a kernel's error ends it with status 1 and its `fix:` line, not with a traceback."""
    try:
        from aios_adapters.cli.app import app
    except ImportError as error:
        sys.stderr.write(f"error: the command line needs {error.name}\n  fix: pip install 'aios-adapters[cli]'\n")
        raise SystemExit(2) from error
    from aios_kernel.errors import AiosError

    try:
        app()
    except AiosError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error
