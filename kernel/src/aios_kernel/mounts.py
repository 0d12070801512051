"""Folders of text files that the user mounts into an agent's space: watched, and found by meaning as notes are.

`[mounts]` in aios.toml maps a space (`agent/NAME` or `group/NAME`) to a folder. Its text files stand, piece by piece,
as notes of the namespace `SPACE/files`; each piece names its `path` and `line`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aios_kernel._names import split_name
from aios_kernel.errors import AiosError, ConfigError, InvalidRequest
from aios_kernel.syscalls import MemoryAdd, MemorySearch

if TYPE_CHECKING:
    from aios_kernel.memory import MemoryManager

_PIECE: Final = 1_000
"""Characters of a piece: about the window of the usual embedding models."""
_MAX_BYTES: Final = 4 << 20
_AUTHOR: Final = "kernel/mounts"
_RETRY_S: Final = 5.0
_LOOK_MS: Final = 1_000
"""Folders are looked at so often even if no change was told of: network folders tell of none."""
_ALL: Final = 1_000_000

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def watching(folders: Mapping[str, str], memory: MemoryManager, principal: str) -> AsyncGenerator[None]:
    """Watch mounted folders inside the block; see `Mounts`."""
    if not folders:
        yield
        return
    task = asyncio.ensure_future(Mounts(folders, memory, principal).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Piece(NamedTuple):
    """Some paragraphs of a file, and the line that they begin at."""

    text: str
    line: int


class Mounts:
    """Keeps the notes of mounted folders in step with their files.

    Args:
        folders: space to folder.
        memory: where the pieces go.
        principal: whose spaces these are.

    Raises:
        ConfigError: a space has no such name, or a folder is not there.
    """

    def __init__(self, folders: Mapping[str, str], memory: MemoryManager, principal: str) -> None:
        self._memory = memory
        self._principal = principal
        self._mounts = [_Mount(f"{_space(space)}/files", _folder(space, path)) for space, path in folders.items()]

    async def run(self) -> None:
        """Watch until cancelled."""
        await asyncio.gather(*(self._keep(mount) for mount in self._mounts))

    async def _keep(self, mount: _Mount) -> None:
        while True:
            try:
                await self._follow(mount)
            except AiosError as error:
                _log.error("the files of %s are not all found: %s", mount.folder, error)
            except OSError as error:
                _log.error("%s cannot be watched: %s", mount.folder, error)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, mount: _Mount) -> None:
        from watchfiles import awatch

        if mount.known is None:
            mount.known = await self._indexed(mount)
        # Watching begins before the first look, so that no change falls between the two.
        changes = awatch(mount.folder, recursive=True, yield_on_timeout=True, rust_timeout=_LOOK_MS)
        async for _ in changes:
            await self._catch_up(mount, mount.known)

    async def _indexed(self, mount: _Mount) -> dict[str, str]:
        """Path to version of the files that are indexed already."""
        first = MemorySearch(k=_ALL, filter={"part": 0})
        notes = (await self._memory.search(self._principal, mount.namespace, first)).notes
        return {str(note.metadata["path"]): str(note.metadata["version"]) for note in notes}

    async def _catch_up(self, mount: _Mount, known: dict[str, str]) -> None:
        there = await asyncio.to_thread(_versions, mount.folder)
        for path in known.keys() - there.keys():
            await self._forget(mount, path, 0)
            del known[path]
        for path, version in there.items():
            if known.get(path) != version:
                await self._index(mount, path, version)
                known[path] = version

    async def _index(self, mount: _Mount, path: str, version: str) -> None:
        pieces = await asyncio.to_thread(_pieces, mount.folder / path)
        # The first piece, whose version tells that the file is done, comes last.
        for part in [*range(1, len(pieces)), *([0] if pieces else [])]:
            text, line = pieces[part]
            metadata = {"path": path, "part": part, "line": line, "version": version}
            call = MemoryAdd(text, metadata=metadata, id=_id(path, part), source=path)
            await self._memory.add(self._principal, mount.namespace, _AUTHOR, call)
        await self._forget(mount, path, len(pieces))

    async def _forget(self, mount: _Mount, path: str, beyond: int) -> None:
        search = MemorySearch(k=_ALL, filter={"path": path})
        for note in (await self._memory.search(self._principal, mount.namespace, search)).notes:
            if int(note.metadata["part"]) >= beyond:
                await self._memory.delete(self._principal, mount.namespace, note.id, by=_AUTHOR)


class _Mount:
    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.known: dict[str, str] | None = None


def _space(name: str) -> str:
    try:
        parts = split_name(name, "space")
    except InvalidRequest as error:
        raise ConfigError(f"[mounts] {error.message}", fix='write "agent/NAME" = "FOLDER"') from error
    if len(parts) != 2 or parts[0] not in ("agent", "group"):
        raise ConfigError(f"[mounts] {name!a} is no space", fix='write "agent/NAME" = "FOLDER"')
    return name


def _folder(space: str, path: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f'[mounts] "{space}": there is no folder {folder}', fix="make it, or take the line out")
    return folder


def _id(path: str, part: int) -> str:
    return f"{path}#{part}"


def _versions(folder: Path) -> dict[str, str]:
    """The text files of a folder that are not hidden, by path; links are not followed."""
    return {path.relative_to(folder).as_posix(): f"{at.st_mtime_ns}-{at.st_size}" for path, at in _files(folder)}


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:  # gone since it was listed
        return
    for entry in entries:
        if entry.name.startswith(".") or not entry.name.isprintable():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            at = entry.stat(follow_symlinks=False)
            if at.st_size <= _MAX_BYTES:
                yield Path(entry.path), at


def _pieces(path: Path) -> list[Piece]:
    """A file's paragraphs in pieces; none of a file that is no text or is gone."""
    try:
        text = path.read_bytes().decode()
    except (UnicodeDecodeError, OSError):
        return []
    if "\0" in text:
        return []
    pieces: list[Piece] = []
    gathered, begin = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        full = len(gathered) + len(line) > _PIECE or (not line.strip() and len(gathered) > _PIECE // 2)
        if full and gathered.strip():
            pieces.append(Piece(gathered.strip(), begin))
            gathered = ""
        if not gathered.strip():
            gathered, begin = "", number
        gathered += line
    if gathered.strip():
        pieces.append(Piece(gathered.strip(), begin))
    return pieces
