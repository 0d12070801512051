"""Random policies, grants and requests over few names, so that rules meet."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from oracle import Chain, Grant, Subject

NAMES = ("a", "ab", "b")
PATTERNS = {
    "principals": ("u", "v", "*", "u*"),
    "groups": ("g", "h", "*"),
    "agents": ("a", "ab", "b", "a*", "b/x", "a/*", "*"),
    "frameworks": ("f", "ff", "f*"),
}
RIGHTS = {"memory": ("read", "write"), "storage": ("read", "write"), "agent": ("read", "write"),
          "group": ("read", "write"), "job": ("read", "write"), "tool": ("call",), "model": ("use",),
          "message": ("send",), "spawn": ("spawn",)}  # fmt: skip


class Request(NamedTuple):
    chain: Chain
    right: str
    resource: str
    tainted: bool


def policy(rng: random.Random) -> dict[str, Any]:
    roles = {f"r{n}": _role(rng) for n in range(rng.randrange(4))}
    made: dict[str, Any] = {"roles": roles}
    for effect, most in (("allow", 8), ("deny", 3), ("ask", 5)):
        made[effect] = [_rule(rng, roles, effect) for _ in range(rng.randrange(most))]
    return made


def _role(rng: random.Random) -> dict[str, Any]:
    keys = rng.sample(sorted(PATTERNS), rng.choice((1, 1, 2, 4)))
    return {key: rng.sample(PATTERNS[key], rng.choice((1, 2))) for key in keys}


def _rule(rng: random.Random, roles: dict[str, Any], effect: str) -> dict[str, Any]:
    kinds = [kind for kind in RIGHTS if not (effect == "ask" and kind == "spawn")]
    chosen = rng.sample(kinds, rng.choice((1, 1, 2, 3)))
    rights = {right for kind in chosen for right in rng.sample(RIGHTS[kind], rng.randrange(1, len(RIGHTS[kind]) + 1))}
    rule: dict[str, Any] = {"rights": sorted(rights), "resources": [_pattern(rng, kind) for kind in chosen]}
    if roles and rng.random() < 0.5:
        rule["roles"] = rng.sample(sorted(roles), rng.randrange(1, len(roles) + 1))
    if effect != "allow" and rng.random() < 0.3:
        rule["tainted"] = True
    return rule


def _pattern(rng: random.Random, kind: str) -> str:
    prefix = kind + "/"
    if kind in ("memory", "storage", "spawn"):
        if rng.random() < 0.3:
            return prefix + "*"
        prefix += rng.choice(("agent/", "group/"))
    name = rng.choice((*NAMES, "g", "h", "a/b", "a/b/c", "*", "*", "*", "a*", "a/*", "a/b*"))
    return prefix + name


def resource(rng: random.Random, kind: str) -> str:
    if kind in ("memory", "storage"):
        return f"{kind}/{_space(rng)}"
    if kind == "spawn":
        return rng.choice([f"spawn/agent/{name}" for name in NAMES] + ["spawn/group/g", "spawn/group/h"])
    return f"{kind}/{rng.choice((*NAMES, 'a/b', 'a/b/c', 'abc'))}"


def _space(rng: random.Random) -> str:
    owner = f"agent/{rng.choice(NAMES)}" if rng.random() < 0.7 else f"group/{rng.choice('gh')}"
    return owner + rng.choice(("", "", "/b", "/b/c"))


def chain(rng: random.Random) -> Chain:
    principal = rng.choice("uv")

    def subject() -> Subject:
        return (principal, rng.choice("gh"), rng.choice((*NAMES, "a/x", "b/x")), rng.choice(("", "f", "ff")))

    return tuple(subject() for _ in range(rng.choice((1, 1, 1, 2, 3))))


def grants(rng: random.Random) -> list[Grant]:
    made: list[Grant] = []
    for _ in range(rng.choice((0, 0, 1, 3))):
        kind = rng.choice(("memory", "storage", "job", "tool", "model", "message", "space"))
        what = _space(rng) if kind == "space" else resource(rng, kind)
        right = rng.choice(RIGHTS["memory" if kind == "space" else kind])
        made.append((rng.choice(NAMES), right, what, chain(rng)))
    return made


def distinct(grants: list[Grant]) -> list[Grant]:
    """A second grant of one giver to the same agent replaces the first."""
    return list({(g[0], g[1], g[2], g[3][0][0], g[3][0][2].split("/")[0]): g for g in grants}.values())


def request(rng: random.Random) -> Request:
    kind = rng.choice(("memory", "storage", "job", "tool", "tool", "model", "message", "spawn"))
    return Request(chain(rng), rng.choice(RIGHTS[kind]), resource(rng, kind), rng.random() < 0.5)


def toml(policy: dict[str, Any]) -> str:
    """The policy as a file; JSON's strings, lists and booleans are TOML's."""
    lines: list[str] = []
    for name, role in policy["roles"].items():
        lines += [f"[roles.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in role.items())]
    for effect in ("allow", "deny", "ask"):
        for rule in policy[effect]:
            lines += [f"[[{effect}]]", *(f"{key} = {json.dumps(value)}" for key, value in rule.items())]
    return "\n".join(lines)
