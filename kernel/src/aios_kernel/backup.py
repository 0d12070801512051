"""Backups of a data directory while its kernel runs, and their restore.

`python -m aios_kernel.backup save HOME FOLDER` and `... restore FOLDER HOME`; `aios backup` and `aios restore` run it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import apsw
import msgspec

from aios_kernel._sqlite import BUSY_TIMEOUT_MS, typed_error
from aios_kernel.errors import AiosError, ConfigError, InvalidRequest, NotFound
from aios_kernel.failpoints import failpoint

MANIFEST: Final = "manifest.json"
_RESTORING: Final = "restore.part"
"""The manifest of a restore that has begun; while it lies there the directory is half empty, and no kernel starts."""


class Kept(msgspec.Struct, frozen=True):
    """A database of a backup: its size, its hash and the version of its tables."""

    name: str
    size_bytes: int
    sha256: str
    version: int


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds; `time_s` is when it was made."""

    time_s: float
    databases: list[Kept]


def save(home: Path, folder: Path) -> Manifest:
    """Copy every database of a data directory into a new folder, each as it is at one moment; the kernel goes on.

    The vector index is left out: it is rebuilt from the notes. A copy is checked before it counts; the manifest is
    written last, so that a backup that was interrupted is none.

    Raises:
        InvalidRequest: the folder has something in it.
        NotFound: there are no databases in `home`.
        AiosError: one of them cannot be read, or the copy not be written.
    """
    databases = sorted(home.glob("*.db"))
    if not databases:
        raise NotFound(f"there is no data in {home}", fix="set AIOS_HOME to a data directory")
    _refuse_full(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = [_copy(path, folder / path.name) for path in databases]
    failpoint("backup.copied")
    manifest = Manifest(time.time(), kept)
    unfinished = folder / f"{MANIFEST}.part"
    unfinished.write_bytes(msgspec.json.encode(manifest))
    _sync(unfinished)
    failpoint("backup.manifest")
    unfinished.replace(folder / MANIFEST)
    failpoint("backup.saved")
    return manifest


def restore(folder: Path, home: Path) -> Manifest:
    """Put the databases of a backup into a data directory that has none, or in which that was begun before.

    Raises:
        NotFound: the folder is no finished backup.
        InvalidRequest: `home` has databases, or a file is not what the manifest says.
    """
    manifest = _manifest(folder)
    present = sorted(path.name for path in home.glob("*.db"))
    if present and not _begun(home, manifest):
        raise InvalidRequest(f"{home} has data: {', '.join(present)}", fix="name an empty folder in AIOS_HOME")
    for kept in manifest.databases:
        if Path(kept.name).name != kept.name or _digest(folder / kept.name) != kept.sha256:
            raise InvalidRequest(f"{folder / kept.name} is not what was saved", fix="restore another backup")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / _RESTORING).write_bytes(msgspec.json.encode(manifest))
    _sync(home / _RESTORING)
    for kept in manifest.databases:
        unfinished = home / f"{kept.name}.part"
        shutil.copyfile(folder / kept.name, unfinished)
        unfinished.chmod(0o600)
        _sync(unfinished)
    failpoint("restore.copied")
    for kept in manifest.databases:  # all are there: from here on only names change
        (home / f"{kept.name}.part").replace(home / kept.name)
        failpoint("restore.named")
    _sync(home)
    (home / _RESTORING).unlink()
    return manifest


def refuse_half_restored(home: Path) -> None:
    """Raise ConfigError where a restore was interrupted: some of the databases may be missing."""
    if (home / _RESTORING).exists():
        raise ConfigError(f"a restore into {home} was interrupted", fix="aios restore FOLDER, the same again")


def _begun(home: Path, manifest: Manifest) -> bool:
    try:
        return msgspec.json.decode((home / _RESTORING).read_bytes(), type=Manifest) == manifest
    except (OSError, msgspec.DecodeError):
        return False


def _copy(path: Path, target: Path) -> Kept:
    try:
        source = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            source.set_busy_timeout(BUSY_TIMEOUT_MS)
            source.execute("VACUUM INTO ?", (str(target),))
        finally:
            source.close(True)
        target.chmod(0o600)
        copy = apsw.Connection(str(target))
        try:
            (found,) = copy.execute("PRAGMA quick_check(1)")
            version = int(copy.pragma("user_version"))
        finally:
            copy.close(True)
    except apsw.Error as error:
        raise typed_error(error, path) from error
    if found[0] != "ok":
        raise InvalidRequest(f"{path} is damaged: {found[0]}", fix="restore an earlier backup")
    _sync(target)
    return Kept(path.name, target.stat().st_size, _digest(target), version)


def _manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise NotFound(f"{folder} is no finished backup: {error}", fix="aios backup FOLDER makes one") from error


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} has something in it", fix="name a folder that does not exist")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", fix="restore another backup") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> int:
    """Run `save` or `restore`; prints the manifest as JSON, or an error with its fix."""
    known = {"save": save, "restore": restore}
    try:
        if len(arguments) != 3 or arguments[0] not in known:
            raise ConfigError("it takes save HOME FOLDER, or restore FOLDER HOME", fix="aios backup FOLDER")
        manifest = known[arguments[0]](Path(arguments[1]), Path(arguments[2]))
    except AiosError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(msgspec.json.encode(manifest).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
