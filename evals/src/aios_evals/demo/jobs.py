"""The demo's jobs: what each agent is asked, and the tools it has. Within what the demo model can do."""

from __future__ import annotations

from dataclasses import dataclass, field

import aios_adapters as aios
from aios_evals.demo.agents import Toolbox
from aios_evals.demo_model import tools as real


@dataclass(frozen=True, slots=True)
class Job:
    """An agent's work: its own questions, then one about what its partner, of another framework, remembered.

    `follower` is the agent whose partner this one is, and so waits for its word.
    """

    agent: str
    framework: str
    questions: tuple[str, ...]
    partner: str
    follower: str
    recall: str


@dataclass(slots=True)
class PlainNotes:
    """The memory of the run without the kernel: a list, searched by common words."""

    notes: list[str] = field(default_factory=list[str])

    async def add(self, note: str) -> None:
        """Keep a note."""
        self.notes.append(note)

    async def search(self, query: str) -> list[str]:
        """The note with most words in common."""
        words = set(query.lower().split())
        return sorted(self.notes, key=lambda note: -len(words & set(note.lower().split())))[:1]


class KernelNotes:
    """The memory of the run with the kernel: notes shared by the group, found by meaning, across frameworks."""

    async def add(self, note: str) -> None:
        """Keep a note."""
        await aios.memory.aadd(note)

    async def search(self, query: str) -> list[str]:
        """The nearest note."""
        return [note.text for note in await aios.memory.asearch(query, k=1)]


def toolbox(notes: PlainNotes | KernelNotes) -> Toolbox:
    """The four tools the demo model knows."""

    async def calculator(expression: str) -> str:
        """Work out an arithmetic expression."""
        return real.calculator(expression)

    async def lookup(item: str) -> str:
        """Look up the price of an item."""
        return real.lookup(item)

    async def remember(note: str) -> str:
        """Remember a note."""
        await notes.add(note)
        return "noted"

    async def recall(query: str) -> str:
        """Recall notes about something."""
        return "\n".join(await notes.search(query)) or "not found"

    return (calculator, lookup, recall, remember)


_FRAMEWORKS = ("langchain", "autogen", "llamaindex", "openai")
_ITEMS = ("zebra-42", "kiwi_7", "green tea", "bolt M4", "O'Neil lamp", "C++ book", "cable #3", "paper A4")
_OWNERS = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Klara", "Leo")
_SECRETS = (
    "K7-x#9",
    "tango_5",
    "42-B/7",
    "blue.fox",
    "P&Q+1",
    "M4:lead",
    "O'Neil",
    "r2-d2",
    "x_99",
    "A.b-3",
    "7up",
    "Z#1",
)


def jobs(each: int) -> list[Job]:
    """`each` agents of every framework; partners are always of another framework."""
    names = [f"{framework}-{n}" for n in range(1, each + 1) for framework in _FRAMEWORKS]
    return [_job(position, names) for position in range(len(names))]


def _job(position: int, names: list[str]) -> Job:
    partner = (position + 1) % len(names)
    item, other = _ITEMS[position % len(_ITEMS)], _ITEMS[(position + 3) % len(_ITEMS)]
    owner, secret = _OWNERS[position % len(_OWNERS)], _SECRETS[position % len(_SECRETS)]
    return Job(
        agent=names[position],
        framework=names[position].partition("-")[0],
        questions=(
            f"Remember that the code of {owner}'s vault is {secret}.",
            f"What is {17 + position} * {23 + 2 * position}?",
            f"What is the price of {item}?",
            f"What do {position + 2} {other} cost?",
        ),
        partner=names[partner],
        follower=names[position - 1],
        recall=f"What is the code of {_OWNERS[partner % len(_OWNERS)]}'s vault?",
    )
