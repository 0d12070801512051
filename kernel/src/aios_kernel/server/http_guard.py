"""Who may come in by HTTP: no browser, no foreign host name, nobody without a token."""

from __future__ import annotations

import ipaddress
from typing import cast, get_args

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aios_kernel import errors
from aios_kernel.server.http_agents import NAMELESS, Caller
from aios_kernel.server.http_replies import refusal
from aios_kernel.server.unix import Doorman
from aios_kernel.syscalls import Priority

_PRIVATE_PATH = "/v1"
_AGENT, _PRIORITY, _GROUP = "x-aios-agent", "x-aios-priority", "x-aios-group"


class Guard:
    """ASGI middleware: refuses what must not come in, and tells the rest who calls (`scope["state"]["caller"]`).

    A page in a browser could reach a loopback port: it sends `Origin`, or after a rebinding of DNS a foreign `Host`.
    """

    def __init__(self, app: ASGIApp, doorman: Doorman) -> None:
        self._app = app
        self._doorman = doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with the refusal."""
        headers = Headers(scope=scope)
        try:
            _refuse_browsers(headers)
            if scope["path"].startswith(_PRIVATE_PATH):
                scope.setdefault("state", {})["caller"] = self._caller(headers)
        except errors.AiosError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _caller(self, headers: Headers) -> Caller:
        principal, named = self._principal(headers.get("authorization", ""))
        for name in headers:
            if name.startswith("x-aios-") and name not in {_AGENT, _PRIORITY, _GROUP}:
                raise errors.Unsupported(f"the header {name} is not supported here", fix="leave it out")
        priority = headers.get(_PRIORITY, "normal")
        if priority not in get_args(Priority):
            raise errors.InvalidRequest(
                f'the header {_PRIORITY} is "{priority}"', fix=f"send one of {', '.join(get_args(Priority))}"
            )
        return Caller(
            principal=principal,
            agent=headers.get(_AGENT) or named or NAMELESS,
            priority=cast(Priority, priority),
            group=headers.get(_GROUP) or None,
        )

    def _principal(self, authorization: str) -> tuple[str, str]:
        """The principal of a bearer token, and the agent's name behind the token's colon, if there is one."""
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise errors.AuthError(
                "the request has no bearer token",
                fix='send "Authorization: Bearer TOKEN"; the token is in run/token of the kernel\'s data directory',
            )
        token, colon, agent = given.strip().rpartition(":")
        return self._doorman.principal_of(token if colon else agent), agent if colon else ""


def _refuse_browsers(headers: Headers) -> None:
    if "origin" in headers:
        raise errors.AccessDenied("requests from web pages are refused", fix="call from a program; send no Origin")
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    if not is_loopback(name):
        raise errors.AccessDenied(f'the Host "{host}" is not this machine', fix="use the URL that the kernel printed")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, reachable from nowhere else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
