"""`python -m aios_kernel.access HOME`: verify the audit log of a data directory on which no kernel is running.

Prints the verdict as JSON; exit code 0: it holds, 1: it does not, 2: it could not be read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import apsw
import msgspec

from aios_kernel._sqlite import typed_error
from aios_kernel.access.seals import Seals
from aios_kernel.access.verify import Verdict, verify
from aios_kernel.errors import AiosError, ConfigError
from aios_kernel.syscalls import AuditVerdict


def main() -> int:
    """Parse, verify, print."""
    parser = argparse.ArgumentParser(description="Verify an audit log.")
    parser.add_argument("home", type=Path, help="data directory")
    parser.add_argument("--seals", type=Path, default=None, help="folder of the seals")
    parser.add_argument("--public", default=None, help="public key, hex; otherwise the one in that folder")
    asked = parser.parse_args()
    path = asked.home / "audit.db"
    try:
        verdict = _verify(path, Seals(asked.seals or path.with_suffix(".seals"), asked.public))
    except AiosError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(AuditVerdict(**verdict._asdict())))
    return 0 if verdict.ok else 1


def _verify(path: Path, seals: Seals) -> Verdict:
    if not path.is_file():
        raise ConfigError(f"there is no audit log at {path}", fix="`aios config show` tells your data directory")
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return verify(db, [seals.head()], seals.lasting())
        finally:
            db.close(True)
    except apsw.Error as error:
        raise typed_error(error, path) from error
    except ValueError as forged:
        return Verdict(False, 0, None, str(forged))


if __name__ == "__main__":
    sys.exit(main())
