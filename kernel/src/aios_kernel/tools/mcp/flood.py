"""A limit on what a server may send unasked."""

from __future__ import annotations

from typing import Final, final

BURST: Final = 4096.0
PER_S: Final = 512.0
_BYTES_A_UNIT: Final = 4096


@final
class Allowance:
    """A token bucket: 4,096 units at once, 512 a second after that; a message costs one, and one for each 4 KiB.

    Progress lines of a build fit in it many times over; a server that never stops does not.
    """

    def __init__(self, now_s: float) -> None:
        self._left = BURST
        self._at_s = now_s

    def take(self, size: int, now_s: float, *, messages: int = 1) -> bool:
        """Pay for messages of `size` bytes together; gives whether there was enough left."""
        self._left = min(BURST, self._left + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        self._left -= messages + size / _BYTES_A_UNIT
        return self._left >= 0
