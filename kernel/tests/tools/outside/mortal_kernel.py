"""A kernel process that can be told to die before or after it writes an intent or a result down."""

from __future__ import annotations

import sys
from typing import Any

import service

from aios_kernel.server.__main__ import main
from aios_kernel.tools.journal import EffectJournal


def mortal(what: str, write: Any) -> Any:
    """A write with a point before and one after it."""

    async def written(*given: Any) -> None:
        service.reach(f"before the {what}")
        await write(*given)
        service.reach(f"after the {what}")

    return written


EffectJournal.begin = mortal("intent", EffectJournal.begin)
EffectJournal.end = mortal("result", EffectJournal.end)
sys.exit(main())
