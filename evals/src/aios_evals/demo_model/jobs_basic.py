"""Jobs of one tool: calculate, look up, remember, recall."""

from typing import Final

from aios_evals.demo_model.script import Job, Scene, job
from aios_evals.demo_model.words import Words, capital

_OPERATIONS: Final = (("plus", "+"), ("minus", "-"), ("times", "*"), ("divided by", "/"), ("multiplied by", "*"))
# "is" comes first: the notes of recall_all leave it out, because "X is" also opens the answer of recall.
_VERBS: Final = ("is", "likes", "owns", "needs", "works on", "has", "sold", "lives in", "ordered", "prefers", "uses")


@job(7, "calculator")
def calc(s: Scene) -> Job:
    """Copy an expression as it stands."""
    e = s.words.expression()
    yield s.words.pick(
        *(f"What is {e}?", f"What is {e}?", f"Calculate {e}.", f"Compute {e}", f"How much is {e}?", f"{e}", f"{e} = ?"),
        *(f"Please work out {e}.", f"Can you calculate {e} for me?", f"What does {e} equal?", f"Work out {e}"),
        *(
            f"Use the calculator: {e}",
            f"what's {e}",
            f"Please calculate {e}",
            f"Solve {e}.",
            f"I need the result of {e}.",
        ),
    )
    (result,) = yield [("calculator", e)]
    return f"{e} = {result}."


@job(3, "calculator")
def calc_words(s: Scene) -> Job:
    """Turn spoken arithmetic into an expression."""
    w = s.words
    a, b = w.number(), w.number()
    word, sign = w.pick(*_OPERATIONS)
    question, e = w.pick(
        *((f"What is {a} {word} {b}?", f"{a} {sign} {b}"), (f"{capital(a)} {word} {b}", f"{a} {sign} {b}")),
        *((f"How much is {a} {word} {b}?", f"{a} {sign} {b}"), (f"Calculate {a} {word} {b}.", f"{a} {sign} {b}")),
        *((f"Add {a} and {b}.", f"{a} + {b}"), (f"Multiply {a} by {b}.", f"{a} * {b}")),
        *((f"Divide {a} by {b}.", f"{a} / {b}"), (f"Subtract {a} from {b}.", f"{b} - {a}")),
        *((f"What is {a}% of {b}?", f"{a} / 100 * {b}"), (f"What is the sum of {a} and {b}?", f"{a} + {b}")),
    )
    yield question
    (result,) = yield [("calculator", e)]
    return f"{e} = {result}."


@job(0.7, "calculator")
def calc_zero(s: Scene) -> Job:
    """A division by zero: the tool says so."""
    e = s.words.of_split(lambda: f"{s.words.number()} / {s.words.pick('0', '0', '(2 - 2)', '0.0')}")
    yield s.words.pick(f"What is {e}?", f"Calculate {e}.", f"How much is {e}?", f"{e}", f"Please work out {e}.")
    (result,) = yield [("calculator", e)]
    return f"{e} = {result}."


@job(3, "calculator")
def calc_two(s: Scene) -> Job:
    """Two expressions in one question: two calls in one turn."""
    a, b = s.words.expression(), s.words.expression()
    yield s.words.pick(
        *(f"What is {a} and what is {b}?", f"Calculate {a} and {b}.", f"What are {a} and {b}?"),
        *(f"Compute {a} and also {b}.", f"Work out {a} and {b}", f"Please calculate {a}, and then {b}."),
    )
    first, second = yield [("calculator", a), ("calculator", b)]
    s.last_value = ""
    return f"{a} = {first} and {b} = {second}."


def price_question(w: Words, item: str) -> str:
    """One of the ways to ask what an item costs."""
    return w.pick(
        *(
            f"What is the price of {item}?",
            f"What does {item} cost?",
            f"How much does {item} cost?",
            f"Price of {item}?",
        ),
        *(f"Look up the price of {item}.", f"Tell me the price of {item}.", f"How much is {item}?", f"price of {item}"),
        *(f"What's the price of {item}?", f"Find the price of {item}.", f"Can you look up the price of {item}?"),
        *(f'What is the price of "{item}"?', f"What is the price of '{item}'?", f"I want to know the price of {item}."),
    )


@job(6, "lookup")
def price(s: Scene) -> Job:
    """The price of an item; now and then one that is not in the list."""
    item, value = s.words.entity(), s.words.price()
    if s.words.chance(0.9):
        s.world.prices[item] = value
    yield price_question(s.words, item)
    yield [("lookup", item)]
    return f"The price of {item} is {value}."


@job(2, "lookup")
def look_up(s: Scene) -> Job:
    """A plain look-up, whose result is repeated as it is."""
    item, value = s.words.entity(), s.words.pick(s.words.price, s.words.price, s.words.entity)()
    if s.words.chance(0.9):
        s.world.prices[item] = value
    yield s.words.pick(
        *(
            f"Look up {item}.",
            f"Please look up {item}",
            f"lookup {item}",
            f"Look up {item} for me.",
            f"Look {item} up.",
        ),
        *(f'Look up "{item}".', f"Can you look up {item}?", f"Use lookup for {item}."),
    )
    yield [("lookup", item)]
    s.last_value = ""
    return f"{item}: {value}"


def subject(w: Words) -> str:
    """What a note is about: ``the code of Anna's vault``, ``Tom's budget``, ``the wifi password``."""
    attribute = w.attribute()
    return w.pick(
        *(lambda: f"the {attribute} of {w.owner()}", lambda: f"the {attribute} of {w.owner()}"),
        *(lambda: f"{w.person()}'s {attribute}", lambda: f"the {attribute}"),
    )()


def free_note(w: Words) -> str:
    """A note in words of its own."""
    note = w.pick(
        w.sentence,
        lambda: f"{w.person()} {w.pick(*_VERBS)} {w.value()}",
        lambda: f"{w.person()} {w.pick(*_VERBS)} {w.value()}",
        lambda: f"the {w.sentence()} is {w.pick('', 'on ', 'at ')}{w.when()}",
    )()
    return f'{note} "{w.value()}"' if w.chance(0.04) else note


@job(6, "remember")
def remember(s: Scene) -> Job:
    """Keep a note as it was said."""
    w = s.words
    note = f"{subject(w)} is {w.value()}" if w.chance(0.65) else free_note(w)
    yield w.pick(
        *(f"Remember that {note}.", f"Please remember: {note}", f"Note that {note}.", f"Remember {note}"),
        *(f"Keep in mind that {note}.", f"Save this note: {note}", f"Don't forget that {note}.", f"Remember: {note}."),
        *(
            f"Please remember that {note}",
            f"Make a note that {note}.",
            f"Remember this: {note}",
            f"remember that {note}",
        ),
    )
    yield [("remember", note)]
    return f"Noted: {note}."


def store_notes(s: Scene, about: str, value: str) -> None:
    """Put the note among others, some of them alike, so that the right one has to be found."""
    others = [free_note(s.words) for _ in range(s.words.pick(0, 0, 0, 1, 2))]
    if s.words.chance(0.35):
        others.append(f"{like(s.words, about)} is {s.words.value()}")
    notes = [*others, f"{about} is {value}"]
    s.words.rng.shuffle(notes)
    s.world.notes.extend(notes)


def like(w: Words, about: str) -> str:
    """A subject that shares words with another and is not the same."""
    if "'s " in about and " of " not in about:
        who, attribute = about.split("'s ", 1)
        return w.pick(f"{w.person()}'s {attribute}", f"{who}'s {w.attribute()}", f"the {attribute} of {who}")
    attribute, _, owner = about.removeprefix("the ").partition(" of ")
    if not owner:
        return f"the {w.attribute()} {attribute}"
    kin = f"project {w.name()}" if owner.startswith("project ") else w.owner()
    return w.pick(f"the {attribute} of {kin}", f"the {w.attribute()} of {owner}", f"the {w.attribute()} of {kin}")


def recall_question(w: Words, about: str) -> str:
    """One of the ways to ask for a note."""
    return w.pick(
        *(
            f"What is {about}?",
            f"What is {about}?",
            f"Recall {about}.",
            f"Do you remember {about}?",
            f"What was {about}?",
        ),
        *(
            f"Tell me {about}.",
            f"Please recall {about}",
            f"What's {about}?",
            f"Do you know {about}?",
            f"I forgot {about}.",
        ),
        *(f"Can you recall {about}?", f"Look in your notes: what is {about}?", f"what is {about}"),
    )


def told(recalled: str, about: str) -> str | None:
    """The value that the notes give for the subject, or None when none of them is about it."""
    for line in recalled.split("\n"):
        fact = line.removeprefix("- ")
        if fact.startswith(f"{about} is "):
            return fact.removeprefix(f"{about} is ")
    return None


def found(recalled: str) -> str:
    """The answer that repeats what was found, line by line."""
    return f"I found: {recalled}"


@job(7, "recall")
def recall(s: Scene) -> Job:
    """What the notes say of something; or what else they say; or that they say nothing."""
    w = s.words
    about, value = subject(w), w.value()
    if w.chance(0.75):
        store_notes(s, about, value)
    elif w.chance(0.7):
        s.world.notes.append(f"{like(w, about)} is {value}")
    yield recall_question(w, about)
    (recalled,) = yield [("recall", about)]
    return found(recalled)


@job(1, "recall")
def recall_sum(s: Scene) -> Job:
    """A price or cost from the notes: the word "recall" decides, not the price list."""
    w = s.words
    about = w.pick(f"the cost of {w.count()} {w.entity()}", f"the price of {w.entity()}")
    store_notes(s, about, w.price())
    yield w.pick(f"Recall {about}.", f"Please recall {about}.", f"Do you remember {about}?", f"Can you recall {about}?")
    (recalled,) = yield [("recall", about)]
    return found(recalled)


@job(2, "recall")
def recall_all(s: Scene) -> Job:
    """Everything the notes say about somebody."""
    w = s.words
    about = w.person() if w.chance(0.5) else w.entity()
    if w.chance(0.9):
        s.world.notes.extend(f"{about} {w.pick(*_VERBS[1:])} {w.value()}" for _ in range(w.pick(1, 1, 2)))
    yield w.pick(
        *(f"What do you know about {about}?", f"What did I tell you about {about}?", f"Recall {about}."),
        *(f"What do your notes say about {about}?", f"Recall everything about {about}.", f"recall {about}"),
    )
    (recalled,) = yield [("recall", about)]
    return found(recalled)
