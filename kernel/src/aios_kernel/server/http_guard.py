"""Who may come in by HTTP: no browser, no foreign host name, nobody without a token."""

from __future__ import annotations

import ipaddress
import re
from typing import cast, get_args

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from aios_kernel import errors
from aios_kernel.openai_wire.openapi import (
    AGENT_HEADER,
    GROUP_HEADER,
    HEADERS,
    PRIORITY_HEADER,
    PROGRAM_HEADER,
    PROGRAM_PATTERN,
)
from aios_kernel.process import NAMELESS
from aios_kernel.server.http_agents import Caller
from aios_kernel.server.http_replies import refusal
from aios_kernel.server.unix import Doorman
from aios_kernel.syscalls import Priority

_PRIVATE_PATHS = ("/v1", "/mcp")
_PROGRAM = re.compile(PROGRAM_PATTERN)


class Guard:
    """ASGI middleware: refuses what must not come in, and tells the rest who calls (`scope["state"]["caller"]`).

    A page in a browser could reach a loopback port: it sends `Origin`, or after a rebinding of DNS a foreign `Host`.
    """

    def __init__(self, app: ASGIApp, doorman: Doorman, owner: str) -> None:
        """`owner` is the principal of those that come by the socket's file without a token."""
        self._app = app
        self._owner = owner
        self._doorman = doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with the refusal."""
        headers = Headers(scope=scope)
        try:
            _refuse_browsers(headers)
            if scope["path"].startswith(_PRIVATE_PATHS):
                scope.setdefault("state", {})["caller"] = self._caller(headers, _came_by_file(scope))
        except errors.AiosError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _caller(self, headers: Headers, by_file: bool) -> Caller:
        principal, named = self._principal(headers.get("authorization", ""), by_file)
        for name in headers:
            if name.startswith("x-aios-") and name not in HEADERS:
                raise errors.Unsupported(f"the header {name} is not supported here", fix="leave it out")
        priority = headers.get(PRIORITY_HEADER, "normal")
        if priority not in get_args(Priority):
            raise errors.InvalidRequest(
                f'the header {PRIORITY_HEADER} is "{priority}"', fix=f"send one of {', '.join(get_args(Priority))}"
            )
        return Caller(
            principal=principal,
            agent=headers.get(AGENT_HEADER) or named or NAMELESS,
            priority=cast(Priority, priority),
            group=headers.get(GROUP_HEADER) or None,
            program=_program(headers.get(PROGRAM_HEADER)),
        )

    def _principal(self, authorization: str, by_file: bool) -> tuple[str, str]:
        """The principal of a bearer token, and the agent's name behind the token's colon, if there is one.

        Whoever comes by the socket's file, which only this user may open, needs no token, but a wrong one is wrong.
        """
        if by_file and not authorization:
            return self._owner, ""
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


def _came_by_file(scope: Scope) -> bool:
    """Whether the connection came by a unix socket: such an address has no port."""
    server = scope.get("server")
    return server is not None and server[1] is None


def _program(name: str | None) -> str | None:
    if name is not None and not _PROGRAM.fullmatch(name):
        raise errors.InvalidRequest(
            f'the header {PROGRAM_HEADER} is "{name[:80]}"', fix="use up to 64 letters, digits, dots, dashes and _"
        )
    return name


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own, reachable from nowhere else."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
