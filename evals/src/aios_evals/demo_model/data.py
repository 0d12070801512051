"""Generates conversations: tools on offer, one or more jobs, and the noise that frameworks put around them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from aios_evals.demo_model import jobs_basic, jobs_chain, jobs_talk
from aios_evals.demo_model.script import JOBS, Call, JobSpec, Scene, Turn, play
from aios_evals.demo_model.tools import TOOL_ARGUMENTS
from aios_evals.demo_model.words import Split, Words
from aios_evals.demo_model.world import STYLES, World

#: Importing these modules registers their jobs.
JOB_MODULES: Final = (jobs_basic, jobs_chain, jobs_talk)
Message = dict[str, Any]

_OTHER_TOOLS: Final = (
    *(
        "search",
        "get_weather",
        "read_file",
        "write_file",
        "send_email",
        "transfer_to_bob",
        "lookup_order",
        "run_python",
    ),
    *("calculator_v2", "remember_me", "recall_all", "web_search", "final_answer", "handoff_to_writer", "sql_query"),
)
_MISSING: Final = (
    "",
    "",
    "",
    "not found",
    "no notes",
    "None",
    "[]",
    "nothing found",
    "No results.",
    "null",
    "not found.",
)
_SAVED: Final = ("saved", "saved", "ok", "OK", "stored", "done", "true", "None", '{"id": 12}', "Noted.", "remembered")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation with its only right course."""

    tools: list[str]
    turns: list[Turn]
    asides: dict[int, str] = field(default_factory=dict[int, str])
    """Messages of other agents that stand before the question of a turn."""
    summary: bool = False
    """The last answer is asked for with the tools taken away, as some frameworks do."""


def conversation(seed: int | str, split: Split, kinds: list[str] | None = None) -> Conversation:
    """Generate the conversation of a seed.

    Args:
        seed: The same seed gives the same conversation.
        split: Held-out names, notes and expressions never appear in the training split.
        kinds: Only these kinds of jobs; all without it.
    """
    words = Words(seed, split)
    first = _choose(words, kinds, follows=False)
    tools = _offered(words, first)
    scene = Scene(words, _world(words, first), frozenset(tools))
    play(first, scene)
    for _ in range(words.pick(*[0] * 50, *[1] * 20, *[2] * 10, 3, 3, 3, 4, 4, 5, 6, 8, 10) if kinds is None else 0):
        follows = bool(scene.last_value) and words.chance(0.35)
        play(_next(words, scene, follows=follows), scene)
    turns = [_wrapped(words, turn) for turn in scene.turns]
    asides = {at: _aside(words) for at in range(len(turns)) if words.chance(0.02)}
    summary = bool(turns[-1].steps) and turns[-1].kind != "no_tool" and words.chance(0.05)
    return Conversation(tools, turns, asides, summary)


def messages(talk: Conversation) -> list[Message]:
    """The whole conversation in the chat format of the OpenAI API."""
    out: list[Message] = []
    for at, turn in enumerate(talk.turns):
        if at in talk.asides:
            out.append({"role": "user", "content": talk.asides[at]})
        out.append({"role": "user", "content": turn.question})
        for number, step in enumerate(turn.steps):
            ids = [f"call_{at}_{number}_{index}" for index in range(len(step))]
            out.append(call_message(step, ids))
            out.extend(
                {"role": "tool", "tool_call_id": id, "content": c.shown} for id, c in zip(ids, step, strict=True)
            )
        out.append({"role": "assistant", "content": turn.answer})
    return out


def call_message(step: list[Call], ids: list[str]) -> Message:
    """The assistant's message for the calls of one step."""
    functions = [{"name": call.tool, "arguments": {TOOL_ARGUMENTS[call.tool]: call.argument}} for call in step]
    calls = [{"id": id, "type": "function", "function": function} for id, function in zip(ids, functions, strict=True)]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def schema(name: str) -> dict[str, Any]:
    """The OpenAI schema of a tool."""
    argument = TOOL_ARGUMENTS.get(name, "text")
    parameters = {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def call_text(tool: str, argument: str) -> str:
    """The text that the model writes for one call."""
    body = json.dumps({"name": tool, "arguments": {TOOL_ARGUMENTS[tool]: argument}}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


def _choose(words: Words, kinds: list[str] | None, *, follows: bool) -> JobSpec:
    specs = [spec for spec in JOBS.values() if spec.kind in kinds] if kinds else list(JOBS.values())
    specs = [spec for spec in specs if spec.follows == follows]
    return words.rng.choices(specs, weights=[spec.weight for spec in specs])[0]


def _next(words: Words, scene: Scene, *, follows: bool) -> JobSpec:
    """A later job; mostly one that the tools on offer can do."""
    spec = _choose(words, None, follows=follows)
    for _ in range(8):
        if scene.offered.issuperset(spec.tools) or words.chance(0.05):
            break
        spec = _choose(words, None, follows=follows)
    return spec


def _offered(words: Words, first: JobSpec) -> list[str]:
    """Any subset of the tools, mostly with those the first job needs, and sometimes foreign ones."""
    tools = set(TOOL_ARGUMENTS)
    if words.chance(0.5):
        tools = {tool for tool in sorted(TOOL_ARGUMENTS) if words.chance(0.5)}
        tools |= set(first.tools) if words.chance(0.7) else set()
    if words.chance(0.3):
        make: Callable[[], str] = lambda: "".join(c for c in words.name() if c.isalnum() or c in "_-")  # noqa: E731
        tools |= {words.pick(words.pick(*_OTHER_TOOLS), make()) for _ in range(words.pick(1, 2, 3, 5))}
    return sorted(tools)


def _world(words: Words, first: JobSpec) -> World:
    failing = {words.pick(*(first.tools or TOOL_ARGUMENTS)): _error(words)} if words.chance(0.05) else {}
    style = words.pick(*STYLES) if words.chance(0.25) else "plain"
    return World(failing=failing, style=style, missing=words.pick(*_MISSING), saved=words.pick(*_SAVED))


def _error(words: Words) -> str:
    text = words.pick("timeout", "permission denied", "not allowed", "connection lost", words.sentence(), words.name())
    return (
        words.pick("error: ", "Error: ", "ValueError: ", "Error executing tool: ", "denied: ", "RuntimeError: ") + text
    )


def _wrapped(words: Words, turn: Turn) -> Turn:
    """The question as frameworks pass it on: mostly bare, sometimes with words around it."""
    if turn.kind == "talk" or not words.chance(0.12):
        return turn
    q, who, noise = turn.question, words.person(), words.sentence()
    question = words.pick(
        *(
            f"Task: {q}",
            f"Question: {q}",
            f"{q}\nUse your tools.",
            f"User: {q}",
            f"New task:\n{q}",
        ),
        *(f"You are agent {who}. {q}", f"Hi! {q}", f"Hello, {q}", f"Please answer: {q}", f"Agent {who} asks: {q}"),
        *(f"{q}\n\nThink step by step.", f"Current Task: {q}", f"{q}\n\nContext: {noise}", f"Next job: {q}"),
        f"Current Task: {q}\n\nThis is the expected criteria for your final answer: {noise}\n"
        "you MUST return the actual complete content as the final answer, not a summary.",
    )
    return Turn(turn.kind, question, turn.steps, turn.answer, turn.world)


def _aside(words: Words) -> str:
    return words.pick(
        jobs_talk.ABILITIES, words.sentence(), f"The price of {words.entity()} is {words.price()}.", "TERMINATE"
    )
