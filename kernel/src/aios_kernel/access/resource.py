"""Resources that rights are held on, per principal.

Spaces are `agent/<name>[/sub...]` and `group/<name>[/sub...]`: their notes are `memory/<space>`, their files
`storage/<space>`, and the bare space means both. Beside them: `job/<agent>` (its long jobs), `tool/<name>`,
`model/<name>`, `message/<agent>` and `spawn/agent/<name>`, `spawn/group/<name>`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from aios_kernel._names import shown, split_name
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import Right

STORES = ("memory", "storage")
SPACES = ("agent", "group")
RIGHTS: dict[str, tuple[Right, ...]] = {
    "memory": ("read", "write"),
    "storage": ("read", "write"),
    "job": ("read", "write"),
    "tool": ("call",),
    "model": ("use",),
    "message": ("send",),
    "spawn": ("spawn",),
}
"""The rights that there are on each kind of resource."""
_FORMS = (
    "agent/<name>[/...], group/<name>[/...] (with memory/ or storage/ before them), job/, tool/, model/ or "
    "message/<name>"
)


class Resource(NamedTuple):
    """A parsed resource. `text` is the whole spelling; `kind` and `name` of a space are its owner's."""

    kind: str
    name: str
    text: str
    store: Literal["", "memory", "storage"] = ""
    """Which half of a space is meant; empty: both."""

    @classmethod
    def parse(cls, text: str) -> Resource:
        """Read a resource.

        Raises:
            InvalidRequest: it is none, or breaks the rules of names.
        """
        parts = split_name(text, "resource")
        store: Literal["", "memory", "storage"] = ""
        if parts[0] == "memory" or parts[0] == "storage":
            store = parts[0]
            del parts[0]
        kind, known = parts[0], SPACES if store else (*SPACES, "job", "tool", "model", "message", "spawn")
        if len(parts) < 2 or kind not in known or (kind == "spawn" and (len(parts) < 3 or parts[1] not in SPACES)):
            raise InvalidRequest(f"{shown(text)} names no resource", fix=f"write {_FORMS}")
        return cls(kind, parts[1], text, store)

    @property
    def is_space(self) -> bool:
        """Whether it is an agent's or a group's space, or a part of one."""
        return self.kind in SPACES

    @property
    def rights(self) -> tuple[Right, ...]:
        """The rights that there are on it."""
        return RIGHTS["memory" if self.is_space else self.kind]

    def owned_by(self, agent: str, group: str) -> bool:
        """Whether an agent of a group owns this: its own space, or its group's."""
        return self.is_space and self.name == (agent if self.kind == "agent" else group)

    def exact(self) -> list[str]:
        """The resources that decisions are about: of a bare space its notes and its files."""
        return [f"{store}/{self.text}" for store in STORES] if self.is_space and not self.store else [self.text]

    def within(self) -> list[str]:
        """This resource and everything that contains it, innermost first; of half a space also the bare spaces."""
        bare = self.text.removeprefix(f"{self.store}/") if self.store else self.text
        floor = len(self.kind) + 1 + len(self.name)
        spans = [bare]
        while len(spans[-1]) > floor:
            spans.append(spans[-1][: spans[-1].rindex("/")])
        return [f"{self.store}/{span}" for span in spans] + spans if self.store else spans


def covering(resource: str) -> list[str]:
    """A resource and all that contain it, innermost first, by its spelling alone; without the bare kind."""
    names = [resource]
    floor = resource.find("/")
    end = resource.rfind("/")
    while end > floor:
        resource = resource[:end]
        names.append(resource)
        end = resource.rfind("/")
    return names
