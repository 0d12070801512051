"""Jobs of several steps, hand-overs between agents, and questions that follow up on the last answer."""

from typing import Final

from aios_evals.demo_model.jobs_basic import found, store_notes, subject, told
from aios_evals.demo_model.script import Job, Scene, job
from aios_evals.demo_model.words import Words, capital

_SIGNS: Final = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}


def cost_question(w: Words, n: str, item: str) -> str:
    """One of the ways to ask what several of an item cost."""
    return w.pick(
        *(f"What do {n} {item} cost?", f"What do {n} {item} cost?", f"How much do {n} {item} cost?"),
        *(f"How much are {n} {item}?", f"What is the price of {n} {item}?", f"What is the cost of {n} {item}?"),
        *(f"I need {n} {item}. What is the total?", f"Total for {n} {item}?", f"Work out the cost of {n} {item}."),
        *(f"Calculate the price of {n} {item}.", f"I want to buy {n} {item}. How much is that?", f"cost of {n} {item}"),
    )


def stocked(s: Scene) -> str:
    """A new item of the price list; now and then the list forgets it."""
    item = s.words.entity()
    if s.words.chance(0.95):
        s.world.prices[item] = s.words.price()
    return item


def _change(w: Words, n: str) -> tuple[str, str]:
    """An order to change a number, and its operation as a word."""
    return w.pick(
        *((f"add {n}", "plus"), (f"add {n} to it", "plus"), (f"subtract {n}", "minus"), (f"take away {n}", "minus")),
        *((f"multiply it by {n}", "times"), (f"multiply by {n}", "times"), (f"divide it by {n}", "divided by")),
    )


@job(6, "lookup", "calculator")
def cost(s: Scene) -> Job:
    """So many of an item."""
    n, item = s.words.count(), stocked(s)
    yield cost_question(s.words, n, item)
    (each,) = yield [("lookup", item)]
    (total,) = yield [("calculator", f"{n} * {each}")]
    return f"{n} {item} cost {total}."


@job(3, "lookup", "calculator")
def price_changed(s: Scene) -> Job:
    """A price with something done to it."""
    w, n, item = s.words, s.words.number(), stocked(s)
    order, word = _change(w, n)
    plain = w.pick(*_SIGNS)
    question, word = w.pick(
        *((f"Look up {item} and {order}.", word), (f"Look up the price of {item} and {order}.", word)),
        *((f"What is the price of {item} {plain} {n}?", plain), (f"Find the price of {item}, then {order}.", word)),
    )
    yield question
    (each,) = yield [("lookup", item)]
    (total,) = yield [("calculator", f"{each} {_SIGNS[word]} {n}")]
    return f"The price of {item} {word} {n} is {total}."


@job(3, "lookup", "calculator")
def together(s: Scene) -> Job:
    """Two items: two look-ups in one turn."""
    w, a, b = s.words, stocked(s), stocked(s)
    yield w.pick(
        *(f"What do {a} and {b} cost together?", f"How much do {a} and {b} cost together?"),
        *(f"What is the total price of {a} and {b}?", f"Add the prices of {a} and {b}."),
    )
    first, second = yield [("lookup", a), ("lookup", b)]
    (total,) = yield [("calculator", f"{first} + {second}")]
    return f"{a} and {b} cost {total} together."


@job(2.5, "lookup", "remember")
def price_kept(s: Scene) -> Job:
    """Look up a price and keep it."""
    item = stocked(s)
    yield s.words.pick(
        *(f"Look up the price of {item} and remember it.", f"Find the price of {item} and make a note of it."),
        *(f"Remember the price of {item}.", f"Look up {item} and remember the price."),
    )
    (each,) = yield [("lookup", item)]
    yield [("remember", f"the price of {item} is {each}")]
    return f"Noted: the price of {item} is {each}."


@job(4, "lookup", "calculator", "remember")
def cost_kept(s: Scene) -> Job:
    """Three steps: look up, calculate, remember."""
    n, item = s.words.count(), stocked(s)
    yield s.words.pick(
        *(f"Work out what {n} {item} cost and remember it.", f"Calculate the cost of {n} {item} and remember it."),
        *(f"Remember what {n} {item} cost.", f"Work out the cost of {n} {item} and make a note of it."),
        *(f"What do {n} {item} cost? Remember the result.", f"How much do {n} {item} cost? Remember it."),
    )
    (each,) = yield [("lookup", item)]
    (total,) = yield [("calculator", f"{n} * {each}")]
    yield [("remember", f"the cost of {n} {item} is {total}")]
    return f"Noted: the cost of {n} {item} is {total}."


@job(2, "calculator", "remember")
def calc_kept(s: Scene) -> Job:
    """Calculate and keep the result."""
    e = s.words.expression()
    yield s.words.pick(
        *(f"Calculate {e} and remember it.", f"What is {e}? Remember the result.", f"Work out {e} and remember it."),
        *(f"Compute {e} and make a note of it.", f"Calculate {e} and remember the result."),
    )
    (result,) = yield [("calculator", e)]
    yield [("remember", f"{e} = {result}")]
    return f"Noted: {e} = {result}."


@job(4, "recall", "calculator")
def recall_changed(s: Scene) -> Job:
    """A remembered number with something done to it."""
    w, about, n = s.words, subject(s.words), s.words.number()
    store_notes(s, about, w.number())
    order, word = _change(w, n)
    plain = w.pick(*_SIGNS)
    question, word = w.pick(
        *((f"Recall {about} and {order}.", word), (f"Recall {about}, then {order}.", word)),
        *((f"What is {about} {plain} {n}?", plain), (f"Take {about} and {order}.", word)),
    )
    yield question
    (recalled,) = yield [("recall", about)]
    value = told(recalled, about)
    if value is None:
        return found(recalled)
    (total,) = yield [("calculator", f"{value} {_SIGNS[word]} {n}")]
    opening = capital(about) if about.startswith("the ") else about
    return f"{opening} {word} {n} is {total}."


@job(2.5, "recall", "lookup")
def recall_price(s: Scene) -> Job:
    """What a remembered item costs."""
    about, item = subject(s.words), stocked(s)
    store_notes(s, about, item)
    yield s.words.pick(
        *(f"Recall {about} and look up its price.", f"Recall {about} and tell me what it costs."),
        *(f"Look up the price of what is noted as {about}.", f"Recall {about}, then look up the price."),
    )
    (recalled,) = yield [("recall", about)]
    value = told(recalled, about)
    if value is None:
        return found(recalled)
    yield [("lookup", value)]
    return f"The price of {value} is {s.world.prices[value]}."


@job(3, "recall", "lookup", "calculator")
def recall_cost(s: Scene) -> Job:
    """Three steps: recall an item, look it up, calculate."""
    n, about, item = s.words.count(), subject(s.words), stocked(s)
    store_notes(s, about, item)
    yield s.words.pick(
        *(f"Recall {about} and tell me what {n} of them cost.", f"Recall {about}. What do {n} of them cost?"),
        *(f"Recall {about} and work out the cost of {n}.", f"Recall {about}, then calculate the price of {n} of them."),
    )
    (recalled,) = yield [("recall", about)]
    value = told(recalled, about)
    if value is None:
        return found(recalled)
    (each,) = yield [("lookup", value)]
    (total,) = yield [("calculator", f"{n} * {each}")]
    return f"{n} {value} cost {total}."


def says(w: Words, text: str) -> str:
    """Text handed over from another agent."""
    who = w.person()
    return w.pick(
        *(f"Agent {who} says: {text}.", f"{who} says: {text}.", f"Message from {who}: {text}.", f"{who}: {text}."),
        *(f"From {who}: {text}.", f"Agent {who} reports: {text}.", f"[{who}] {text}.", f"{who} told me: {text}."),
    )


@job(3, "calculator")
def told_price(s: Scene) -> Job:
    """Another agent gives the price; only the calculator is needed."""
    w, n, item, each = s.words, s.words.count(), s.words.entity(), s.words.price()
    fact = says(w, w.pick(f"the price of {item} is {each}", f"The price of {item} is {each}"))
    yield f"{fact} " + w.pick(
        f"What do {n} cost?", f"How much are {n}?", f"What do {n} of them cost?", f"What are {n}?"
    )
    (total,) = yield [("calculator", f"{n} * {each}")]
    return f"{n} {item} cost {total}."


@job(2.5, "calculator")
def told_number(s: Scene) -> Job:
    """Another agent gives a number to go on with."""
    w, n, value = s.words, s.words.number(), s.words.number()
    fact = says(w, w.pick(f"{w.pick('the result', subject(w))} is {value}", f"{w.expression()} = {value}"))
    order, word = _change(w, n)
    yield f"{fact} {capital(order)}."
    e = f"{value} {_SIGNS[word]} {n}"
    (total,) = yield [("calculator", e)]
    return f"{e} = {total}."


@job(2, "remember")
def told_note(s: Scene) -> Job:
    """Another agent gives something to keep."""
    w = s.words
    note = w.pick(f"{subject(w)} is {w.value()}", w.sentence(), f"{w.count()} {w.entity()} cost {w.price()}")
    yield f"{says(w, note)} " + w.pick("Remember it.", "Remember that.", "Remember this.", "Make a note of it.")
    yield [("remember", note)]
    return f"Noted: {note}."


@job(3, "calculator", follows=True)
def follow_change(s: Scene) -> Job:
    """Go on with the number of the last answer."""
    w, n, value = s.words, s.words.number(), s.last_value
    question, sign = w.pick(
        *(
            (f"Add {n} to that.", "+"),
            (f"Add {n} to it.", "+"),
            (f"Now add {n}.", "+"),
            (f"Subtract {n} from that.", "-"),
        ),
        *((f"Multiply that by {n}.", "*"), (f"Multiply it by {n}.", "*"), (f"Divide that by {n}.", "/")),
        *((f"And plus {n}?", "+"), (f"And times {n}?", "*"), (f"And minus {n}?", "-")),
    )
    yield question
    e = f"{value} {sign} {n}"
    (total,) = yield [("calculator", e)]
    return f"{e} = {total}."


@job(2, "remember", follows=True)
def follow_note(s: Scene) -> Job:
    """Keep the last answer."""
    text = s.last_answer.removesuffix(".").removeprefix("Noted: ")
    note = "t" + text[1:] if text.startswith("The ") else text
    yield s.words.pick(
        "Remember that.", "Please remember that.", "Make a note of that.", "Remember it.", "Note that down."
    )
    yield [("remember", note)]
    return f"Noted: {note}."
