"""Resources that rights are held on: `agent/<name>[/sub...]` and `group/<name>[/sub...]`, per principal."""

from __future__ import annotations

from typing import Literal, NamedTuple

from aios_kernel._names import shown, split_name
from aios_kernel.errors import InvalidRequest


class Resource(NamedTuple):
    """A parsed resource; `name` is the agent or the group that owns it, `text` the whole spelling."""

    kind: Literal["agent", "group"]
    name: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Resource:
        """Read a resource.

        Raises:
            InvalidRequest: it is neither an agent's nor a group's, or breaks the rules of names.
        """
        parts = split_name(text, "resource")
        kind = parts[0]
        if len(parts) < 2 or (kind != "agent" and kind != "group"):
            raise InvalidRequest(
                f"{shown(text)} names no resource", fix="write agent/<name>[/...] or group/<name>[/...]"
            )
        return cls(kind, parts[1], text)

    def owned_by(self, agent: str, group: str) -> bool:
        """Whether an agent of a group owns this: its own space, or its group's."""
        return self.name == (agent if self.kind == "agent" else group)

    def within(self) -> list[str]:
        """This resource and everything that contains it, innermost first."""
        spans = [self.text]
        floor = len(self.kind) + 1 + len(self.name)
        text = self.text
        while len(text) > floor:
            text = text[: text.rindex("/")]
            spans.append(text)
        return spans
