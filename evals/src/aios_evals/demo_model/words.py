"""Seeded names, codes, numbers and notes; those held out for the evaluation never appear in training."""

import random
import string
import zlib
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeVar

Split = Literal["train", "heldout"]
T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES: Final = (
    *("code", "budget", "password", "colour", "owner", "deadline", "address", "PIN", "key", "size", "name", "weight"),
    *("birthday", "room number", "phone number", "favourite food", "wifi password", "secret word", "door code"),
    *("due date", "team leader", "serial number", "status", "city", "height", "limit", "score", "balance", "stock"),
)
PEOPLE: Final = (
    *("Anna", "Bob", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Karin", "Liam", "Maria"),
    *("Nora", "Oscar", "Paula", "Ruth", "Tom", "Vera", "Zoe", "alice", "bob", "planner", "writer", "agent1"),
)
_HELD_OUT_SHARE: Final = 8
_SYLLABLES: Final = _words(
    "ba be bo ca co da de di do fa fi go ha hu in ja ka ki la le lo ma mi mo na ne no or pa pe ra re ri ro sa se so "
    "ta te ti to un va vi wa ya zo al ar en er on is us ex ing st ch sh th qu wh ck ll"
)
_COMMON: Final = _words(
    "apple pear zebra kiwi falcon tiger bolt nut lamp chair table paper tea coffee cup cable switch book pencil rope "
    "ladder hammer drill screw panel motor pump valve sensor router server laptop phone radio camera window door "
    "garden bridge river harbour train bicycle wheel engine rocket planet comet orbit signal desk bottle basket "
    "blanket carpet curtain mirror candle guitar piano violin ticket ledger invoice contract parcel crate barrel "
    "marble copper silver golden blue green red yellow small large heavy light winter summer north south alpha beta"
)
_MONTHS: Final = _words("January February March April May June July August September October November December")
_DAYS: Final = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday today tomorrow")
_JOINERS: Final = "-_'./&+:#--__"
_ACCENTS: Final = "\u00e9\u00e8\u00fc\u00f6\u00e4\u00df\u00f1\u00e7\u00f8\u00e5\u00ee\u0142\u03bb\u65e5"
_ALNUM: Final = string.ascii_letters + string.digits


def is_held_out(text: str) -> bool:
    """Whether a name, code, note or expression belongs to the evaluation: decided by its checksum alone."""
    return zlib.crc32(text.encode()) % _HELD_OUT_SHARE == 0


class Words:
    """Draws open-class text (names, notes, numbers, expressions) of one split from one seeded source."""

    def __init__(self, seed: int | str, split: Split) -> None:
        """Seed the source; every draw stays inside the split."""
        self.rng = random.Random(f"{split}/{seed}")
        self._held_out = split == "heldout"

    def pick(self, *options: T) -> T:
        """One of the options."""
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def of_split(self, draw: Callable[[], str]) -> str:
        """Draw until the text belongs to this split."""
        while is_held_out(text := draw()) != self._held_out:
            pass
        return text

    def name(self) -> str:
        """A name without blanks: words, random letters, digits, punctuation, accents."""
        return self.of_split(self._raw_name)

    def entity(self) -> str:
        """What an item, place or project is called: a name, or two or three plain words."""
        return self.of_split(self._raw_entity)

    def owner(self) -> str:
        """An entity that may belong to somebody: ``Anna's vault``, ``project Falcon-9``."""
        return self.of_split(self._raw_owner)

    def code(self) -> str:
        """A value of letters, digits and punctuation."""
        return self.of_split(self._raw_code)

    def value(self) -> str:
        """What a note says of an attribute: a code, a number, a name or a few words."""
        return self.pick(self.code, self.code, self.number, self.name, self.entity, self.when, self._words)()

    def person(self) -> str:
        """Who speaks or owns; also random names, so that any name works."""
        return self.pick(*PEOPLE) if self.chance(0.5) else self.of_split(self._raw_person)

    def attribute(self) -> str:
        """What can be asked of an entity; a fifth of them random, so that any attribute works."""
        return self.of_split(self._plain_word) if self.chance(0.2) else self.pick(*ATTRIBUTES)

    def sentence(self) -> str:
        """A free note of three to six words."""
        return self.of_split(lambda: " ".join(self._plain_word() for _ in range(self.rng.randint(3, 6))))

    def when(self) -> str:
        """A date, a time, or both."""
        rng = self.rng
        date = self.pick(
            f"{rng.randint(1, 31)} {self.pick(*_MONTHS)}", self.pick(*_DAYS), f"{self.pick(*_DAYS)} next week"
        )
        date += f" {rng.randint(1990, 2060)}" if self.chance(0.3) else ""
        time = f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}"
        return self.pick(date, time, f"{date} at {time}")

    def expression(self) -> str:
        """An arithmetic expression with one to three operators."""
        return self.of_split(self._raw_expression)

    def count(self) -> str:
        """How many: mostly small, not one."""
        return str(self.rng.randint(2, self.pick(12, 12, 99, 999, 9999)))

    def number(self) -> str:
        """An integer or decimal number of up to five digits."""
        whole = self.rng.randint(1, 10 ** self.rng.randint(1, 5) - 1)
        return str(whole) if self.chance(0.6) else f"{whole}.{self._decimals()}"

    def price(self) -> str:
        """A price: mostly with decimals."""
        whole = self.rng.randint(0, 10 ** self.rng.randint(1, 4))
        return f"{whole}.{self._decimals()}" if self.chance(0.65) or whole == 0 else str(whole)

    def _decimals(self) -> str:
        # The last digit is not 0, because no price list or calculator writes it.
        return self.pick("", "", str(self.rng.randint(0, 9))) + str(self.rng.randint(1, 9))

    def _raw_expression(self) -> str:
        parts = [self.number() for _ in range(self.pick(2, 2, 2, 2, 2, 3, 3))]
        text = parts[0]
        for part in parts[1:]:
            text += f" {self.pick(*'+-*/')} {part}"
        if len(parts) > 2 and self.chance(0.4):
            head, sign, last = text.rsplit(" ", 2)
            text = f"({head}) {sign} {last}"
        return text.replace(" ", "") if self.chance(0.15) else text

    def _letters(self, alphabet: str, low: int, high: int) -> str:
        return "".join(self.rng.choices(alphabet, k=self.rng.randint(low, high)))

    def _plain_word(self) -> str:
        return self.pick(
            lambda: self.pick(*_COMMON),
            lambda: "".join(self.rng.choices(_SYLLABLES, k=self.rng.randint(1, 3))),
            lambda: self._letters(string.ascii_lowercase, 1, 7),
        )()

    def _spoken_word(self) -> str:
        return self.pick(
            lambda: self.pick(*_COMMON), lambda: "".join(self.rng.choices(_SYLLABLES, k=self.rng.randint(2, 3)))
        )()

    def _piece(self) -> str:
        text = self.pick(
            self._plain_word,
            self._plain_word,
            lambda: self._letters(string.ascii_letters, 2, 7),
            lambda: self._letters(_ALNUM, 2, 7),
            lambda: self._letters(string.digits, 1, 4),
        )()
        return text.capitalize() if self.chance(0.25) else text

    def _raw_name(self) -> str:
        pieces = [self._piece() for _ in range(self.pick(1, 1, 1, 1, 1, 2, 2, 2, 3))]
        text = pieces[0] + "".join(self.pick(*_JOINERS) + piece for piece in pieces[1:])
        if self.chance(0.1):
            at = self.rng.randint(0, len(text))
            text = text[:at] + self.pick(*_ACCENTS) + text[at:]
        if self.chance(0.05):
            text += self.pick("+", "#", "++")
        # A name starts with a letter, or "3 zebra" could mean an item "3 zebra".
        return text if text[0].isalpha() else self.pick(*string.ascii_letters) + text

    def _words(self) -> str:
        return " ".join(self._plain_word() for _ in range(self.rng.randint(2, 4)))

    def _raw_person(self) -> str:
        word = self._plain_word()
        return self.pick(word, word.capitalize(), f"{word}{self.rng.randint(1, 99)}", f"{word}_{self._plain_word()}")

    def _raw_entity(self) -> str:
        # Words of a longer name are known words or whole syllables: a random letter between blanks ("garden t") reads
        # like the next word of the sentence.
        word = self._spoken_word
        return self.pick(
            *(self._raw_name, self._raw_name, self._raw_name, self._raw_name, self._raw_name, self._raw_name),
            *(lambda: f"{word()} {word()}", lambda: f"{word()} {word()}", lambda: f"{word()} {word()} {word()}"),
        )()

    def _raw_owner(self) -> str:
        return self.pick(
            self._raw_entity,
            lambda: f"project {self._raw_name()}",
            lambda: f"{self.person()}'s {self._spoken_word()}",
            lambda: f"the {self._spoken_word()} {self._spoken_word()}",
        )()

    def _raw_code(self) -> str:
        text = self._letters(_ALNUM + _JOINERS + "*!?%$@=", 2, 10)
        # No closing punctuation: it could be the end of the sentence.
        return text.rstrip("_'.&:!?,-/*%$@=") or self._raw_code()


def capital(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def spoken_list(items: Sequence[str]) -> str:
    """``a and b`` or ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
