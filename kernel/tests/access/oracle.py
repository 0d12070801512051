"""What docs/access.md says, in brute force: every rule is looked at, nothing is compiled. Written apart from the code.

A policy is the plain data of its file; a subject is (principal, group, agent, framework); a chain begins with the run
itself; a grant is (grantee, right, resource, chain of the giver).
"""

from __future__ import annotations

from typing import Any

Subject = tuple[str, str, str, str]
Chain = tuple[Subject, ...]
Grant = tuple[str, str, str, Chain]


def covers(pattern: str, name: str) -> bool:
    if pattern[-1] == "*":
        return name[: len(pattern) - 1] == pattern[:-1]
    return name.split("/")[: len(pattern.split("/"))] == pattern.split("/")


def fits(pattern: str, resource: str) -> bool:
    """A bare space means its notes and its files."""
    spelled = (
        [f"{half}/{pattern}" for half in ("memory", "storage")] if pattern[:6] in ("agent/", "group/") else [pattern]
    )
    return any(covers(each, resource) for each in spelled)


def has(role: dict[str, Any], subject: Subject) -> bool:
    lists = [role.get(key) for key in ("principals", "groups", "agents", "frameworks")]
    return all(
        any(covers(entry, mine) for entry in each)
        for each, mine in zip(lists, subject, strict=True)
        if each is not None
    )


def said(policy: dict[str, Any], effect: str, subject: Subject, right: str, resource: str, tainted: bool) -> bool:
    mine = {name for name, role in policy.get("roles", {}).items() if has(role, subject)}
    return any(
        right in rule["rights"]
        and (rule.get("roles") is None or mine & set(rule["roles"]))
        and (tainted or not rule.get("tainted", False))
        and any(fits(pattern, resource) for pattern in rule["resources"])
        for rule in policy.get(effect, [])
    )


def owns(subject: Subject, resource: str) -> bool:
    parts = resource.split("/")
    if parts[0] == "job":
        return parts[1] == subject[2].split("/")[0]
    if parts[0] not in ("memory", "storage"):
        return False
    return parts[2] == (subject[2].split("/")[0] if parts[1] == "agent" else subject[1])


def alone(
    policy: dict[str, Any], grants: list[Grant], subject: Subject, right: str, resource: str, tainted: bool
) -> str:
    """One subject: forbidden, unheard of, ask, or allow."""
    if said(policy, "deny", subject, right, resource, tainted):
        return "forbidden"
    held = owns(subject, resource) or said(policy, "allow", subject, right, resource, tainted)
    if not held and not any(given(policy, grant, subject, right, resource) for grant in grants):
        return "unheard of"
    return "ask" if said(policy, "ask", subject, right, resource, tainted) else "allow"


def given(policy: dict[str, Any], grant: Grant, subject: Subject, right: str, resource: str) -> bool:
    grantee, granted, what, giver = grant
    if giver[0][0] != subject[0] or grantee != subject[2].split("/")[0] or granted != right or not fits(what, resource):
        return False
    return decide(policy, [], giver, right, resource, False) == "allow"


def decide(policy: dict[str, Any], grants: list[Grant], chain: Chain, right: str, resource: str, tainted: bool) -> str:
    said_of = [alone(policy, grants, subject, right, resource, tainted) for subject in chain]
    if said_of[0] in ("forbidden", "unheard of"):
        return "deny"
    for subject, verdict in zip(chain[1:], said_of[1:], strict=True):
        if verdict == "forbidden":
            return "deny"
        if verdict == "unheard of":
            parts = resource.split("/")
            if parts[0] not in ("memory", "storage", "job"):
                return "deny"
            owner = f"agent/{parts[1]}" if parts[0] == "job" else f"{parts[1]}/{parts[2]}"
            if alone(policy, [], subject, "spawn", f"spawn/{owner}", False) != "allow":
                return "deny"
            if said(policy, "ask", subject, right, resource, tainted):
                said_of.append("ask")
    return "ask" if "ask" in said_of else "allow"
