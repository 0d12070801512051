"""UTF-8 as it comes, byte by byte: one character for every well-formed group, one U+FFFD for every other."""

from __future__ import annotations

REPLACEMENT = "\ufffd"


class Utf8Decoder:
    """An incremental decoder.

    Unlike Python's, it takes a lead byte and the continuation bytes it announces for one character also when they
    spell none (half a surrogate pair, an overlong form): a grammar that counts characters counts them so too.
    """

    def __init__(self) -> None:
        self._held = b""

    def push(self, data: bytes) -> str:
        """The characters that the bytes complete."""
        if self._held:
            data = self._held + data
            self._held = b""
        try:
            return data.decode()
        except UnicodeDecodeError:
            return self._groups(data)

    def finish(self) -> str:
        """What is left of an incomplete character: U+FFFD, or nothing."""
        held, self._held = self._held, b""
        return REPLACEMENT if held else ""

    def _groups(self, data: bytes) -> str:
        out: list[str] = []
        at = 0
        while at < len(data):
            end = at + 1
            wanted = at + _length(data[at])
            while end < min(wanted, len(data)) and data[end] & 0xC0 == 0x80:
                end += 1
            if end == len(data) < wanted:
                self._held = data[at:]
                break
            out.append(_character(data[at:end]))
            at = end
        return "".join(out)


def decode(data: bytes) -> str:
    """All of it; an incomplete character at the end is U+FFFD."""
    decoder = Utf8Decoder()
    return decoder.push(data) + decoder.finish()


def _length(lead: int) -> int:
    """Bytes of the character that a lead byte announces; a byte that cannot lead stands alone."""
    if lead >= 0xF8 or lead < 0xC0:
        return 1
    return 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2


def _character(group: bytes) -> str:
    try:
        return group.decode()
    except UnicodeDecodeError:
        return REPLACEMENT
