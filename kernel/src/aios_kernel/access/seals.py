"""Signed ends of the audit chain, kept apart from the records.

Who can write the database can make a new chain of his own; without the kernel's key he cannot sign its end (Ed25519,
RFC 8032). The newest end lies in `head.json`, written before and after each commit, so that a crash between the two is
no false alarm; every thousandth record's and each closing's is added to `seals.jsonl`. Put the folder where the
database's writers cannot write (`audit_seals`), or copy `audit.pub` and the newest lines elsewhere now and then.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aios_kernel.access.chain import START, Link
from aios_kernel.errors import ConfigError
from aios_kernel.failpoints import failpoint

EVERY = 1000
"""Records between two lasting seals."""


class Seal(msgspec.Struct, frozen=True):
    """Says where the chain ended; between `before` and `after` lies at most the commit that was under way.

    Attributes:
        before: records and digest (hex) of the end that was committed.
        after: of the end that is being committed, or the same.
        time_s: when.
        signature: hex, over all of it.
    """

    before: tuple[int, str]
    after: tuple[int, str]
    time_s: float
    signature: str = ""

    def ends(self) -> set[Link]:
        """Where the chain may end."""
        return {Link(seq, bytes.fromhex(digest)) for seq, digest in (self.before, self.after)}

    def payload(self) -> bytes:
        """What is signed."""
        return msgspec.json.encode(("aios audit seal 1", self.before, self.after, self.time_s))


@final
class Sealer:
    """Signs the ends of one log.

    Args:
        key: file of the private key, made if it is not there, for its owner's eyes only.
        folder: where the seals and the public key go.

    Raises:
        ConfigError: the key cannot be read, or the folder not be written.
    """

    def __init__(self, key: Path, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._key = _private_key(key)
            public = folder / "audit.pub"
            if not public.exists():
                _write_whole(public, f"{self._key.public_key().public_bytes_raw().hex()}\n".encode(), 0o644)
            self._cut_torn_line()
            self.seals = Seals(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the audit log cannot be sealed: {error}",
                fix=f"make {key} and {folder} readable and writable for this user",
            ) from error
        self._lasting = self.seals.last_lasting()

    def intend(self, before: Link, after: Link) -> None:
        """Say that a commit is about to move the end. Raises OSError."""
        self._write_head(self._signed(before, after))

    def settle(self, end: Link, *, lasting: bool = False) -> None:
        """Say where the chain ends now. Raises OSError."""
        seal = self._signed(end, end)
        self._write_head(seal)
        if end.seq > self._lasting and (lasting or end.seq - self._lasting >= EVERY):
            self._append(msgspec.json.encode(seal) + b"\n")
            self._lasting = end.seq

    def _append(self, line: bytes) -> None:
        """Add a line to the lasting seals, or nothing of it: the next one must not follow half a line."""
        with (self._folder / "seals.jsonl").open("ab", buffering=0) as file:
            end = file.tell()
            try:
                failpoint("audit.lasting")
                if file.write(line) != len(line):
                    raise OSError("no space is left for a seal")
            except OSError:
                file.truncate(end)
                raise

    def _cut_torn_line(self) -> None:
        """What a power loss left of the last line seals nothing."""
        path = self._folder / "seals.jsonl"
        if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
            os.truncate(path, text.rfind(b"\n") + 1)

    def _signed(self, before: Link, after: Link) -> Seal:
        seal = Seal((before.seq, before.digest.hex()), (after.seq, after.digest.hex()), time.time())
        return msgspec.structs.replace(seal, signature=self._key.sign(seal.payload()).hex())

    def _write_head(self, seal: Seal) -> None:
        # Without a sync, as the records themselves: what a power loss takes is told as a gap at the next start.
        building = self._folder / "head.json.part"
        building.write_bytes(msgspec.json.encode(seal))
        failpoint("audit.sealing")
        building.replace(self._folder / "head.json")
        failpoint("audit.sealed")


@final
class Seals:
    """Reads the seals of a folder.

    Args:
        folder: with `audit.pub`, `head.json` and `seals.jsonl`.
        public: the public key (hex) to trust rather than the folder's.
    """

    def __init__(self, folder: Path, public: str | None = None) -> None:
        self._folder = folder
        self._public = public

    def head(self) -> Seal | None:
        """The newest seal, None if there never was one. Raises ValueError: it is not signed by the key."""
        path = self._folder / "head.json"
        return self._checked(path.read_bytes()) if path.is_file() else None

    def lasting(self) -> list[Seal]:
        """The lasting seals, oldest first. Raises ValueError: one of them is not signed by the key."""
        path = self._folder / "seals.jsonl"
        return [self._checked(line) for line in path.read_bytes().splitlines() if line] if path.is_file() else []

    def last_lasting(self) -> int:
        """Up to which record a lasting seal reaches; 0 where none is readable."""
        try:
            return max((seal.after[0] for seal in self.lasting()), default=0)
        except ValueError:
            return 0

    def _checked(self, text: bytes) -> Seal:
        try:
            seal = msgspec.json.decode(text, type=Seal)
            public = self._public or (self._folder / "audit.pub").read_text().strip()
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
            key.verify(bytes.fromhex(seal.signature), seal.payload())
            seal.ends()
        except (msgspec.MsgspecError, InvalidSignature, OSError) as error:
            raise ValueError(f"a seal in {self._folder} is not signed by this log's key") from error
        return seal


def unsealed(end: Link, head: Seal | None) -> str:
    """What is wrong where the chain ends elsewhere than its newest seal says; empty where nothing is."""
    if head is None:
        return "" if end == START else f"{end.seq} records were never sealed"
    if end in head.ends():
        return ""
    return f"sealed up to record {head.after[0]}, but the log ends at {end.seq}"


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        _write_whole(path, key.private_bytes_raw(), 0o600)
        return key


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    """Make a file that is there as a whole or not at all; the kernel that died while it made one left a part."""
    building = path.with_name(f"{path.name}.part")
    building.unlink(missing_ok=True)
    with os.fdopen(os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        failpoint("audit.key")
        os.fsync(file.fileno())
    building.replace(path)
