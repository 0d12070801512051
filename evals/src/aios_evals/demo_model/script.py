"""Plays jobs: turns a job's plan into a question, tool calls with their results, and the one right answer."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from aios_evals.demo_model.words import Words
from aios_evals.demo_model.world import Result, World

#: One tool call as a job plans it: tool name and its only argument.
Planned = tuple[str, str]
#: A job yields its question, then the calls of each step; it is sent the plain results and returns the answer.
Job = Generator[str | list[Planned], list[str], str]


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call and what came back."""

    tool: str
    argument: str
    shown: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and everything the assistant has to do about it."""

    kind: str
    question: str
    steps: list[list[Call]]
    answer: str
    world: World
    """The world just before the first call, to run the job again with real tools."""


@dataclass(slots=True)
class Scene:
    """What a job may draw from: words, the world, and the value and answer of the turn before."""

    words: Words
    world: World
    offered: frozenset[str]
    last_value: str = ""
    last_answer: str = ""
    turns: list[Turn] = field(default_factory=list[Turn])


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A registered kind of job."""

    kind: str
    weight: float
    tools: tuple[str, ...]
    build: Callable[[Scene], Job]
    follows: bool = False
    """Whether the job only makes sense after a turn that ended with a number."""


JOBS: Final[dict[str, JobSpec]] = {}


def job(
    weight: float, *tools: str, follows: bool = False
) -> Callable[[Callable[[Scene], Job]], Callable[[Scene], Job]]:
    """Register a job under its function's name, with its share of the data and the tools it needs in order."""

    def register(build: Callable[[Scene], Job]) -> Callable[[Scene], Job]:
        JOBS[build.__name__] = JobSpec(build.__name__, weight, tools, build, follows)
        return build

    return register


def play(spec: JobSpec, scene: Scene) -> Turn:
    """Run a job to its end and append the turn to the scene."""
    plan = spec.build(scene)
    question = next(plan)
    assert isinstance(question, str)  # the contract of Job
    before = scene.world.copy()
    absent = [tool for tool in spec.tools if tool not in scene.offered]
    if absent:
        turn = Turn("no_tool", question, [], f"I have no {absent[0]} tool.", before)
        scene.last_value = ""
    else:
        steps, answer = _run(plan, scene)
        turn = Turn(spec.kind, question, steps, answer, before)
    scene.last_answer = turn.answer
    scene.turns.append(turn)
    return turn


def _run(plan: Job, scene: Scene) -> tuple[list[list[Call]], str]:
    """Follow the plan until it returns, or until a tool has nothing to give."""
    steps: list[list[Call]] = []
    scene.last_value = ""
    results: list[str] | None = None
    while True:
        try:
            planned = plan.send(results) if results is not None else next(plan)
        except StopIteration as end:
            return steps, end.value
        assert not isinstance(planned, str)  # only the first yield is the question
        done = [(tool, argument, scene.world.run(tool, argument)) for tool, argument in planned]
        steps.append([Call(tool, argument, result.shown) for tool, argument, result in done])
        trouble = [_trouble(*one) for one in done if one[2].status != "ok"]
        if trouble:
            scene.last_value = ""
            return steps, trouble[0]
        results = [result.plain for _, _, result in done]
        _keep_value(scene, planned, results)


def _keep_value(scene: Scene, planned: list[Planned], results: list[str]) -> None:
    """Keep the number a follow-up question could mean, when there is exactly one."""
    tool = planned[0][0]
    if tool in ("calculator", "lookup"):
        scene.last_value = results[0] if len(results) == 1 else ""


def _trouble(tool: str, argument: str, result: Result) -> str:
    """The answer when a call failed or found nothing."""
    if result.status == "failed":
        return f"The {tool} tool failed: {result.shown.splitlines()[0]}"
    return f"I could not find {argument}." if tool == "lookup" else f"I have no note about {argument}."
