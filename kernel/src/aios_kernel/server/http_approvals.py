"""Approvals by HTTP: what waits for a person, and the answers. Not of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import AccessApprove, AccessPending, Approvals

APPROVALS_PATH = "/approvals"


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    allow: bool
    remember: bool = False


def read_pending(query: Mapping[str, str]) -> AccessPending:
    """`?wait=true&after=NUMBER`. Raises InvalidRequest."""
    wait, after = query.get("wait", "false"), query.get("after", "0")
    if set(query) - {"wait", "after"} or wait not in {"true", "false"} or not (after.isascii() and after.isdigit()):
        raise InvalidRequest("the query may have wait=true or false, and after=NUMBER", fix="GET /v1/approvals")
    return AccessPending(wait=wait == "true", after=min(int(after[:20]), 2**63 - 1))


def read_answer(id: str, body: Mapping[str, Any]) -> AccessApprove:
    """`{"allow": true, "remember": false}`. Raises InvalidRequest."""
    try:
        answer = msgspec.convert(body, _Answer)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the answer cannot be read: {error}", fix='send {"allow": true or false}') from error
    return AccessApprove(id=id, allow=answer.allow, remember=answer.remember)


def pending_reply(found: Approvals) -> dict[str, Any]:
    """What waits, as JSON."""
    return {"approvals": msgspec.to_builtins(found.approvals)}
