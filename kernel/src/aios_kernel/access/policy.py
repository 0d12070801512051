"""A policy, compiled: who may what, in a few look-ups.

For each set of roles the rules that concern it are gathered once, by right, into dictionaries of the resources that
they name. A denial wins over everything, then what is not allowed is denied, then a rule of `ask` has a person decide;
the order of rules and of roles means nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

from aios_kernel.access.patterns import Patterns
from aios_kernel.access.policy_file import AskRule, DenyRule, PolicyText, Role, Rule
from aios_kernel.access.resource import RIGHTS, SPACES, STORES, covering
from aios_kernel.access.subject import Question, Subject
from aios_kernel.syscalls import Right

BUILT_IN = """\
# In force because there is no policy file: agents keep to their own spaces and their groups', all else is open.
[[allow]]
name = "what is nobody's own"
rights = ["call", "use", "send", "spawn"]
resources = ["tool/*", "model/*", "message/*", "spawn/*"]
"""
_KEPT = 100_000
_LISTS = ("principals", "groups", "agents", "frameworks")
"""Of a role, in the order of a subject's fields."""


class Rules(NamedTuple):
    """What the rules say about one right, for one set of roles; None: nothing."""

    deny: Patterns[str] | None
    ask: Patterns[Question] | None
    allow: Patterns[str] | None


_Compiled = dict[Right, Rules]


@final
class Policy:
    """The rules of one file. Immutable but for what it remembers; used on one thread.

    Attributes:
        text: the file's.
        approvals: how it wants questions asked.
        follows_taint: whether taint means anything here.
    """

    def __init__(self, text: PolicyText) -> None:
        self.text = text
        self.approvals = text.approvals
        self._sources = Patterns((source, source) for source in text.taint.sources)
        self._contained = frozenset(text.taint.contained)
        self._rules = [
            (effect, rule, text.label(effect, number, rule))
            for effect, rules in (("deny", text.deny), ("ask", text.ask), ("allow", text.allow))
            for number, rule in enumerate(rules)
        ]
        self.follows_taint = bool(self._sources) or any(_for_tainted(rule) for _, rule, _ in self._rules)
        self._members = [_members(text.roles, lists) for lists in _LISTS]
        self._lists = {
            name: sum(getattr(role, lists) is not None for lists in _LISTS) for name, role in text.roles.items()
        }
        self._compiled: dict[tuple[frozenset[str], bool], _Compiled] = {}
        self._of_subject: dict[tuple[Subject, bool], _Compiled] = {}

    @classmethod
    def built_in(cls) -> Policy:
        """What holds without a file."""
        return cls(PolicyText(BUILT_IN, "built in"))

    @classmethod
    def of_file(cls, path: Path) -> Policy:
        """Read and compile a file. Raises ConfigError."""
        return cls(PolicyText.of_file(path))

    def rules(self, subject: Subject, right: Right, tainted: bool) -> Rules | None:
        """What is said about a right of this subject."""
        key = (subject, tainted)
        compiled = self._of_subject.get(key)
        if compiled is None:
            if len(self._of_subject) >= _KEPT:
                self._of_subject.clear()
            compiled = self._of_subject[key] = self._for_roles(self.roles(subject), tainted)
        return compiled.get(right)

    def roles(self, subject: Subject) -> frozenset[str]:
        """The roles that a subject has: all lists of theirs have an entry that fits."""
        fitting: Counter[str] = Counter()
        for table, name in zip(self._members, subject, strict=True):
            if table is not None:
                fitting.update({role for roles in table.all(covering(f"/{name}")) for role in roles})
        return frozenset(role for role, lists in fitting.items() if lists == self._lists[role])

    def budget(self, subject: Subject) -> int | None:
        """Tokens of one run: the largest of its roles' budgets; None: no role of it names one."""
        budgets = [self.text.roles[name].budget for name in self.roles(subject)]
        return max((budget for budget in budgets if budget is not None), default=None)

    def taints(self, tool: str) -> bool:
        """Whether a tool's results are untrusted by this policy."""
        return self._sources.first(covering(f"tool/{tool}")) is not None

    def contained(self, subject: Subject) -> bool:
        """Whether the taint of this subject's runs stays with them."""
        return not self._contained.isdisjoint(self.roles(subject))

    def _for_roles(self, roles: frozenset[str], tainted: bool) -> _Compiled:
        key = (roles, tainted)
        if key not in self._compiled:
            if len(self._compiled) >= _KEPT:
                self._compiled.clear()
            mine = [row for row in self._rules if _concerns(row[1], roles, tainted)]
            rights: set[Right] = {right for _, rule, _ in mine for right in rule.rights}
            self._compiled[key] = {right: _gathered(mine, right) for right in rights}
        return self._compiled[key]


def _members(roles: Mapping[str, Role], lists: str) -> Patterns[list[str]] | None:
    """The roles by the entries of one of their lists; a slash before each, so that whole first parts are names too."""
    found: dict[str, list[str]] = {}
    for name, role in roles.items():
        for entry in getattr(role, lists) or ():
            found.setdefault(f"/{entry}", []).append(name)
    return Patterns(found.items()) or None


def _concerns(rule: Rule, roles: frozenset[str], tainted: bool) -> bool:
    return (rule.roles is None or not roles.isdisjoint(rule.roles)) and (tainted or not _for_tainted(rule))


def _for_tainted(rule: Rule) -> bool:
    return isinstance(rule, DenyRule) and rule.tainted


def _gathered(rules: Sequence[tuple[str, Rule, str]], right: Right) -> Rules:
    deny: list[tuple[str, str]] = []
    ask: dict[str, Question] = {}
    allow: list[tuple[str, str]] = []
    for effect, rule, label in rules:
        if right not in rule.rights:
            continue
        for pattern in (each for resource in rule.resources for each in _expanded(resource, right)):
            if isinstance(rule, AskRule):
                question = Question(label, rule.timeout_s, rule.default)
                ask[pattern] = question.stricter(ask.get(pattern))
            else:
                (deny if effect == "deny" else allow).append((pattern, label))
    return Rules(Patterns(deny) or None, Patterns(ask.items()) or None, Patterns(allow) or None)


def _expanded(resource: str, right: Right) -> list[str]:
    """The patterns that decisions are compared with: of a bare space its two halves; none that lack the right."""
    kind = resource.partition("/")[0]
    if kind in SPACES:
        return [f"{store}/{resource}" for store in STORES] if right in RIGHTS["memory"] else []
    return [resource] if right in RIGHTS[kind] else []
