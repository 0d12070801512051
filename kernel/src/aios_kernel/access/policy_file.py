"""The policy file: what may stand in it, and errors that say where.

The schema is docs/access.md's. Reading gives rules as they stand; `Policy` makes them fast.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final

import msgspec

from aios_kernel.access.resource import RIGHTS, SPACES, STORES
from aios_kernel.errors import ConfigError
from aios_kernel.syscalls import Right

T = TypeVar("T")
_Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in the file: a key that nobody knows is refused, never passed over."""


class Role(_Part, frozen=True, kw_only=True):
    """Who has a role: runs that one entry of every list that is given fits. `budget`: tokens of a run and below it."""

    principals: list[_Pattern] | None = None
    groups: list[_Pattern] | None = None
    agents: list[_Pattern] | None = None
    frameworks: list[_Pattern] | None = None
    budget: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Rule(_Part, frozen=True, kw_only=True):
    """One rule, as `allow` has them. `roles` None: everybody."""

    name: str = ""
    roles: list[str] | None = None
    rights: Annotated[list[Right], msgspec.Meta(min_length=1)]
    resources: Annotated[list[_Pattern], msgspec.Meta(min_length=1)]


class DenyRule(Rule, frozen=True, kw_only=True):
    """A rule that takes away. `tainted`: only from runs that untrusted content has reached; taint can give nothing."""

    tainted: bool = False


class AskRule(DenyRule, frozen=True, kw_only=True):
    """A rule that has a person decide. `default` is what counts when nobody answers in time."""

    timeout_s: _Seconds = 300.0
    default: Literal["allow", "deny"] = "deny"


class Taint(_Part, frozen=True, kw_only=True):
    """What makes a run tainted, and whose taint stays with it."""

    sources: list[_Pattern] = []
    """Tools, `tool/...`, whose results are untrusted, beside those that say so of themselves."""
    contained: list[str] = []
    """Roles whose runs do not taint the runs that started them."""


class Approving(_Part, frozen=True, kw_only=True):
    """Who may answer."""

    by: list[str] | None = None
    """Principals that answer for everybody; None: each principal for its own agents."""
    own_process: bool = True
    """Whether the process that the agent runs in may answer too."""


@final
class PolicyText:
    """A policy file's contents, read and checked one part at a time.

    Raises:
        ConfigError: it is no TOML, or a key or value is wrong; the message names the line.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:  # its words name line and column
            raise ConfigError(f"{source} is no TOML: {error}", fix=f"edit {source}") from error
        self._lines = _lines(text)
        self._refuse_unknown(raw, ("version", "roles", "allow", "ask", "deny", "taint", "approvals"))
        self._read(raw.get("version", 1), Literal[1], "version")
        self.roles = {
            name: self._role(self._read(value, Role, f"roles.{name}"), f"roles.{name}")
            for name, value in self._read(raw.get("roles", {}), dict[str, Any], "roles").items()
        }
        self.allow = self._rules(raw, "allow", Rule)
        self.deny = self._rules(raw, "deny", DenyRule)
        self.ask = self._rules(raw, "ask", AskRule)
        self.taint = self._read(raw.get("taint", {}), Taint, "taint")
        self.approvals = self._read(raw.get("approvals", {}), Approving, "approvals")
        self._check_taint()

    @classmethod
    def of_file(cls, path: Path) -> PolicyText:
        """Read a file. Raises ConfigError, also for one that anybody on this machine may change."""
        try:
            if path.stat().st_mode & 0o002:
                raise ConfigError(f"everybody may write {path}, which decides who may what", fix=f"chmod o-w {path}")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the policy {path} cannot be read: {error}", fix=f"edit {path}") from error
        return cls(text, str(path))

    def label(self, effect: str, number: int, rule: Rule) -> str:
        """What a rule is called in answers: its kind, its name, its line."""
        place = f"{effect}[{number}]"
        line = self._lines.get(place)
        where = f"{self.source}:{line}" if line else self.source
        return f'{effect} "{rule.name}" ({where})' if rule.name else f"{place} ({where})"

    def wrong(self, place: str, what: str) -> ConfigError:
        """The error of what stands at a place such as `allow[2].rights`."""
        at = place
        while at and at not in self._lines:
            at = at.rpartition(".")[0]
        line = f":{self._lines[at]}" if at else ""
        return ConfigError(f"{self.source}{line}: {place}: {what}", fix=f"edit {self.source}")

    def _read(self, value: Any, kind: type[T] | Any, place: str) -> T | Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$")
            inner = re.sub(r"\[\d+\]$", "", path.removesuffix("`"))
            unknown = re.search("unknown field `([^`]*)`", reason)
            inner += f".{unknown[1]}" if unknown else ""
            raise self.wrong(place + inner, reason) from error

    def _rules(self, raw: Mapping[str, Any], effect: str, kind: type[T]) -> list[T]:
        values = self._read(raw.get(effect, []), list[Any], effect)
        return [
            self._rule(self._read(value, kind, f"{effect}[{number}]"), f"{effect}[{number}]")
            for number, value in enumerate(values)
        ]

    def _role(self, role: Role, place: str) -> Role:
        given = [role.principals, role.groups, role.agents, role.frameworks]
        if all(each is None for each in given) or [] in given:
            raise self.wrong(place, "nobody is named to have this role; give principals, groups, agents or frameworks")
        for each in given:
            self._check_stars(each or [], place)
        return role

    def _rule(self, rule: Any, place: str) -> Any:
        for role in rule.roles or []:
            if role not in self.roles:
                raise self.wrong(f"{place}.roles", f'there is no role "{role}"; there are: {", ".join(self.roles)}')
        if rule.roles == []:
            raise self.wrong(f"{place}.roles", "the list is empty; leave it out for everybody")
        if isinstance(rule, AskRule) and "spawn" in rule.rights:
            raise self.wrong(f"{place}.rights", 'nobody can be asked about "spawn"; allow or deny it')
        self._check_stars(rule.resources, f"{place}.resources")
        for resource in rule.resources:
            self._check_resource(resource, rule.rights, place)
        self._check_rights(rule, place)
        return rule

    def _check_resource(self, resource: str, rights: list[Right], place: str) -> None:
        kind, slash, rest = resource.partition("/")
        known = (*SPACES, *RIGHTS)
        if kind not in known or not slash or not rest:
            kinds = ", ".join(f"{each}/" for each in known)
            raise self.wrong(f"{place}.resources", f'"{resource}" names no resource; they begin with {kinds}')
        if kind in (*STORES, "spawn") and rest.split("/")[0] not in (*SPACES, "*"):
            raise self.wrong(f"{place}.resources", f'"{resource}": write {kind}/agent/... or {kind}/group/...')
        if not set(_rights_of(kind)) & set(rights):
            fits = " or ".join(_rights_of(kind))
            raise self.wrong(f"{place}.rights", f"{', '.join(rights)}: the right on {resource} is {fits}")

    def _check_rights(self, rule: Rule, place: str) -> None:
        fitting = {right for resource in rule.resources for right in _rights_of(resource.partition("/")[0])}
        for right in rule.rights:
            if right not in fitting:
                raise self.wrong(f"{place}.rights", f'none of the resources knows the right "{right}"')

    def _check_stars(self, patterns: list[str], place: str) -> None:
        for pattern in patterns:
            if "*" in pattern[:-1]:
                raise self.wrong(place, f'"{pattern}": a * may only stand at the end')

    def _check_taint(self) -> None:
        self._check_stars(self.taint.sources, "taint.sources")
        for source in self.taint.sources:
            if not source.startswith("tool/") or source == "tool/":
                raise self.wrong("taint.sources", f'"{source}" is no tool; write tool/NAME')
        for role in self.taint.contained:
            if role not in self.roles:
                raise self.wrong("taint.contained", f'there is no role "{role}"')

    def _refuse_unknown(self, raw: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for key in raw:
            if key not in known:
                raise self.wrong(key, f"unknown key; there are: {', '.join(known)}")


def _rights_of(kind: str) -> tuple[Right, ...]:
    return RIGHTS["memory" if kind in SPACES else kind]


_HEADER = re.compile(r"""\s*(\[\[?)\s*([\w."'-]+)\s*\]""")
_KEY = re.compile(r"""\s*([\w."'-]+)\s*=""")


def _lines(text: str) -> dict[str, int]:
    """Where tables and keys stand, by their path: `allow[2].rights`."""
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[2].replace('"', "").replace("'", "")
            if header[1] == "[[":
                counts[table] += 1
                table = f"{table}[{counts[table] - 1}]"
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault(f"{table}.{key[1]}" if table else key[1], number)
    return found
