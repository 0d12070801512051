"""Default-deny access: ownership, the policy's rules, grants, and who runs below whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast, final

from aios_kernel._names import shown, split_name
from aios_kernel.access.grants import Chain, Grant, Grants
from aios_kernel.access.marks import Marks
from aios_kernel.access.policy import Policy
from aios_kernel.access.resource import Resource, covering
from aios_kernel.access.subject import Decision, Question, Subject
from aios_kernel.errors import AccessDenied, InvalidRequest
from aios_kernel.syscalls import Right

_log = logging.getLogger(__name__)
NOTHING = "nothing allows it"
_OWNED = "it owns the space"


@final
class AccessManager:
    """Decides who may do what; decisions read memory only and take microseconds. Used on the kernel's loop.

    An agent owns the space `agent/<its name>` and its long jobs, the agents of a group own `group/<its name>` together.
    Anything else needs a rule of the policy, or a grant of somebody who holds the right. Denials of the policy win over
    both. Nothing of another principal has a name here: every question is asked within the caller's principal.

    Args:
        path: the database of grants.
        policy: the policy file; None, or one that does not exist: the built-in policy.
        required: that the file must exist.

    Raises:
        ConfigError: the policy file is wrong, or required and missing.
    """

    def __init__(self, path: Path, policy: Path | None = None, *, required: bool = False) -> None:
        self._file = policy
        self._required = required
        self.policy = self._read()
        self.grants = Grants(path)
        self.marks = Marks(self.grants.db)

    def reload(self) -> Policy:
        """Read the policy file again; decisions follow it from now on. Raises ConfigError, and the old one stays."""
        self.policy = self._read()
        _log.info("the access policy is now that of %s", self.policy.text.source)
        return self.policy

    def decide(self, chain: Chain, right: Right, resource: str, *, tainted: bool = False) -> Decision:
        """Decide about a run.

        Args:
            chain: the run and those that it runs below, itself first. All of them must hold the right: a child's
                rights are at most its parents', at this moment.
            right: what is to be done.
            resource: on what, as `Resource.exact` spells it. Compared as text; nothing is looked up by it.
            tainted: whether untrusted content has reached the run.
        """
        names = covering(resource)
        first: Decision | None = None
        question: Question | None = None
        for subject in chain:
            found = self._of(subject, right, names, tainted)
            if found.effect == "deny":
                owned_below = first is not None and found.rule is NOTHING and self._may_run_owner(subject, names)
                if not owned_below:
                    return (
                        found if first is None else Decision("deny", f'{found.rule} for its parent "{subject.agent}"')
                    )
                found = self._with_questions(subject, right, names, tainted, Decision("allow", _OWNED))
            if found.question is not None:
                question = found.question.stricter(question)
            first = first or found
        assert first is not None
        return first if question is None else Decision("ask", question.rule, question)

    def check(self, principal: str, agent: str, group: str, resource: str, right: Right) -> None:
        """Return if an agent that nobody started holds the right on the resource, without asking anybody.

        Raises:
            AccessDenied: it does not; the fix names what would help.
            InvalidRequest: the resource or the right is malformed.
        """
        chain = (Subject(principal, group, agent),)
        for decision in (self.decide(chain, right, each) for each in checked(resource, right).exact()):
            if decision.effect != "allow":
                raise denied(chain, right, resource, decision)

    async def grant(
        self, principal: str, owner: str, to: str, resource: str, rights: Sequence[Right], *, group: str | None = None
    ) -> None:
        """`give` for an agent that nobody started."""
        await self.give((Subject(principal, group or "", owner),), to, resource, rights)

    async def revoke(
        self, principal: str, owner: str, to: str, resource: str, rights: Sequence[Right], *, group: str | None = None
    ) -> None:
        """`take_back` for an agent that nobody started."""
        await self.take_back((Subject(principal, group or "", owner),), to, resource, rights)

    async def give(self, chain: Chain, to: str, resource: str, rights: Sequence[Right]) -> None:
        """Let agent `to` do what the run may do by the policy or as an owner; durable on return.

        The grant is worth what its giver holds: while the giver may not, the agent may not either.

        Raises:
            AccessDenied: the giver does not hold it, holds it by a grant itself, or would have to ask.
            InvalidRequest: malformed names or rights.
        """
        asked = _named(to, resource, rights)
        for right in rights:
            if not self._gives(chain, right, asked):
                raise AccessDenied(
                    f'agent "{chain[0].agent}" {_not_its_own(asked, right)}',
                    agent=chain[0].agent,
                    fix=f'let {asked.kind} "{asked.name}" decide about it'
                    if asked.is_space
                    else f'add a rule for "{to}" to the policy file (docs/access.md)',
                )
        await self.grants.add(
            [Grant(chain[0].principal, to, resource, right, chain) for right in dict.fromkeys(rights)]
        )

    async def take_back(self, chain: Chain, to: str, resource: str, rights: Sequence[Right]) -> None:
        """Take rights back, on the resource and on everything below it; holds from the return on.

        An owner takes back what anybody gave of its space; of other things each agent what it gave itself.

        Raises:
            AccessDenied: the space is not the run's.
            InvalidRequest: malformed names or rights, or the right comes from a grant on something wider.
        """
        giver, asked = chain[0], _named(to, resource, rights)
        if asked.is_space and not asked.owned_by(giver.root, giver.group):
            raise AccessDenied(
                f'agent "{giver.agent}" does not own {resource}',
                agent=giver.agent,
                fix=f'let {asked.kind} "{asked.name}" decide about it',
            )
        for right in dict.fromkeys(rights):
            self._refuse_if_wider(giver.principal, to, asked, right)
        for right in dict.fromkeys(rights):
            await self.grants.remove(giver.principal, to, resource, right, None if asked.is_space else giver.root)

    def is_held(self, grant: Grant) -> bool:
        """Whether a grant is worth something: its giver holds now what he gave."""
        return any(
            self._holds(grant.granter, cast(Right, grant.right), covering(each))
            for each in Resource.parse(grant.resource).exact()
        )

    async def close(self) -> None:
        """Finish open grants and close the database."""
        await asyncio.to_thread(self.grants.db.close)

    # --- one subject ------------------------------------------------------------------------------------------------

    def _of(self, subject: Subject, right: Right, names: list[str], tainted: bool) -> Decision:
        """What one subject may, its parents left out."""
        found = self._by_policy(subject, right, names, tainted)
        if found.rule is not NOTHING or not self.grants:
            return found
        giver = self._giver(subject, right, names)
        if giver is None:
            return found
        return self._with_questions(subject, right, names, tainted, Decision("allow", f'a grant of "{giver.agent}"'))

    def _with_questions(
        self, subject: Subject, right: Right, names: list[str], tainted: bool, found: Decision
    ) -> Decision:
        """What is allowed for another reason than a rule, unless a rule demands that a person is asked."""
        rules = self.policy.rules(subject, right, tainted)
        return _asked(rules.ask.all(names), found) if rules is not None and rules.ask is not None else found

    def _by_policy(self, subject: Subject, right: Right, names: list[str], tainted: bool) -> Decision:
        """What one subject may as an owner and by the rules."""
        rules = self.policy.rules(subject, right, tainted)
        if rules is None:
            return Decision("allow", _OWNED) if _owns(subject, names[0]) else Decision("deny", NOTHING)
        if rules.deny is not None and (denial := rules.deny.first(names)) is not None:
            return Decision("deny", denial)
        if _owns(subject, names[0]):
            found = Decision("allow", _OWNED)
        elif rules.allow is not None and (rule := rules.allow.first(names)) is not None:
            found = Decision("allow", rule)
        else:
            return Decision("deny", NOTHING)
        return found if rules.ask is None else _asked(rules.ask.all(names), found)

    def _giver(self, subject: Subject, right: Right, names: list[str]) -> Subject | None:
        """Who gave the subject this right, and holds it himself now, with all above him."""
        bare = [name.partition("/")[2] for name in names] if names[0].startswith(("memory/", "storage/")) else []
        for name in (*names, *bare):
            for chain in self.grants.givers(subject.principal, subject.root, right, name):
                if self._holds(chain, right, names):
                    return chain[0]
        return None

    def _holds(self, chain: Chain, right: Right, names: list[str]) -> bool:
        """Whether a run holds a right without grants and questions; that alone it can give."""
        return all(
            (found := self._by_policy(subject, right, names, False)).effect == "allow"
            or (
                place > 0
                and found.rule is NOTHING
                and self._may_run_owner(subject, names)
                and self._with_questions(subject, right, names, False, Decision("allow", _OWNED)).effect == "allow"
            )
            for place, subject in enumerate(chain)
        )

    def _gives(self, chain: Chain, right: Right, asked: Resource) -> bool:
        if asked.is_space and not asked.owned_by(chain[0].root, chain[0].group):
            return False
        return all(self._holds(chain, right, covering(each)) for each in asked.exact())

    def _may_run_owner(self, subject: Subject, names: list[str]) -> bool:
        """Whether a subject may start runs that own this space or job, and so has all that they own."""
        parts = names[0].split("/")
        if parts[0] not in {"memory", "storage", "job"}:
            return False
        kind, name = ("agent", parts[1]) if parts[0] == "job" else (parts[1], parts[2])
        return self._by_policy(subject, "spawn", covering(f"spawn/{kind}/{name}"), False).effect == "allow"

    def _refuse_if_wider(self, principal: str, to: str, asked: Resource, right: str) -> None:
        wider_names = asked.within()[1:] if asked.is_space else covering(asked.text)[1:]
        for wider in wider_names:
            if self.grants.givers(principal, to, right, wider):
                raise InvalidRequest(
                    f'agent "{to}" may {right} {asked.text} by a grant on {wider}',
                    fix=f'revoke "{right}" on "{wider}" and grant the narrower ones anew',
                )

    def _read(self) -> Policy:
        if self._file is None or (not self._required and not self._file.exists()):
            return Policy.built_in()
        return Policy.of_file(self._file)


def checked(resource: str, right: str) -> Resource:
    """A resource on which there is such a right. Raises InvalidRequest."""
    wanted = Resource.parse(resource)
    if right not in wanted.rights:
        raise InvalidRequest(f"{right!a} is no right on {shown(resource)}", fix=f"use {' or '.join(wanted.rights)}")
    return wanted


def denied(chain: Chain, right: Right, resource: str, decision: Decision) -> AccessDenied:
    """The error of a call that was not allowed; its fix names what would help."""
    agent = chain[0].agent
    if decision.effect == "ask":
        return AccessDenied(f'agent "{agent}" may not {right} {resource} unasked ({decision.rule})', agent=agent)
    why = "" if decision.rule is NOTHING else f": {decision.rule}"
    fix = f"see `aios access check {agent} {right} {resource}`"
    if decision.rule is NOTHING and (wanted := Resource.parse(resource)).is_space:
        owner = f'agent "{wanted.name}"' if wanted.kind == "agent" else f'an agent of group "{wanted.name}"'
        fix = f'let {owner} call access.grant with to="{chain[0].root}", resource="{resource}", rights=["{right}"]'
    return AccessDenied(f'agent "{agent}" may not {right} {resource}{why}', agent=agent, fix=fix)


def _asked(questions: list[Question], found: Decision) -> Decision:
    if not questions:
        return found
    strictest = questions[0]
    for each in questions[1:]:
        strictest = each.stricter(strictest)
    return Decision("ask", strictest.rule, strictest)


def _owns(subject: Subject, resource: str) -> bool:
    if not resource.startswith(("memory/", "storage/", "job/")):
        return False
    store, kind, *rest = resource.split("/", 3)
    if store == "job":
        return kind == subject.root  # the name of an agent stands there at once
    return rest[0] == (subject.root if kind == "agent" else subject.group)


def _named(to: str, resource: str, rights: Sequence[Right]) -> Resource:
    if len(split_name(to, "agent name")) != 1:
        raise InvalidRequest(f"{to!a} is no agent's name", fix="name one agent, without slashes")
    asked = Resource.parse(resource)
    if not rights or not set(asked.rights).issuperset(rights):
        raise InvalidRequest(f"{list(rights)!a} are no rights on {shown(resource)}", fix=f"name {asked.rights!a}")
    return asked


def _not_its_own(asked: Resource, right: str) -> str:
    if asked.is_space:
        return f"does not own {asked.text}, or may not {right} it itself"
    return f"cannot give the right to {right} {asked.text}: it does not hold it itself, by the policy and unasked"
