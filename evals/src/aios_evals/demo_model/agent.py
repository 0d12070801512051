"""Runs many agents of the demo model at once: greedy generation, real tools, the whole history each time."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aios_evals.demo_model.data import Conversation, Message, schema
from aios_evals.demo_model.script import Turn
from aios_evals.demo_model.tokenizer import END
from aios_evals.demo_model.world import World

_CALL: Final = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_MAX_STEPS: Final = 5
_MAX_NEW_TOKENS: Final = 400
_BATCH: Final = 64


@dataclass(slots=True)
class Run:
    """One conversation as the model leads it, and what went wrong first."""

    talk: Conversation
    history: list[Message] = field(default_factory=list[Message])
    at: int = 0
    steps: list[list[tuple[str, str]]] = field(default_factory=list[list[tuple[str, str]]])
    world: World = field(default_factory=World)
    mistake: str = ""

    def ask(self) -> None:
        """Put the question of the current turn, with what another agent said before it."""
        turn = self.talk.turns[self.at]
        self.world, self.steps = turn.world.copy(), []
        if self.at in self.talk.asides:
            self.history.append({"role": "user", "content": self.talk.asides[self.at]})
        self.history.append({"role": "user", "content": turn.question})

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask, or an answer was wrong."""
        return bool(self.mistake) or self.at == len(self.talk.turns)

    def tools(self) -> list[dict[str, Any]]:
        """The tools on offer now; none for the summary of the last turn."""
        turn = self.talk.turns[self.at]
        last = self.at + 1 == len(self.talk.turns) and len(self.steps) == len(turn.steps)
        return [] if self.talk.summary and last else [schema(name) for name in self.talk.tools]

    def hear(self, text: str) -> None:
        """Take what the model wrote: run its tools, or check its answer."""
        turn = self.talk.turns[self.at]
        calls = parse_calls(text)
        if calls is None or len(self.steps) == _MAX_STEPS:
            self.mistake = text
        elif calls:
            self._work(calls)
        elif (wrong := difference(turn, self.steps, text)) is not None:
            self.mistake = wrong
        else:
            self.history.append({"role": "assistant", "content": text})
            self.at += 1
            if not self.done:
                self.ask()

    def _work(self, calls: list[tuple[str, dict[str, str]]]) -> None:
        self.steps.append([(name, next(iter(arguments.values()), "")) for name, arguments in calls])
        functions = [{"name": name, "arguments": arguments} for name, arguments in calls]
        tool_calls = [{"type": "function", "function": function} for function in functions]
        self.history.append({"role": "assistant", "content": None, "tool_calls": tool_calls})
        for name, argument in self.steps[-1]:
            self.history.append({"role": "tool", "content": self.world.run(name, argument).shown})


def parse_calls(text: str) -> list[tuple[str, dict[str, str]]] | None:
    """The tool calls in the model's text; None when they are not well formed."""
    bodies = _CALL.findall(text)
    try:
        calls = [json.loads(body) for body in bodies]
        parsed = [(str(call["name"]), cast("dict[str, str]", dict(call["arguments"]))) for call in calls]
    except (ValueError, KeyError, TypeError):
        return None
    return parsed if parsed or "<tool_call>" not in text else None


def difference(turn: Turn, steps: list[list[tuple[str, str]]], answer: str) -> str | None:
    """What differs from the only right course, or None."""
    expected = [[(call.tool, call.argument) for call in step] for step in turn.steps]
    if steps != expected:
        return f"calls {steps}, expected {expected}"
    return None if answer == turn.answer else f"answer {answer!r}, expected {turn.answer!r}"


class Model:
    """The demo model behind plain transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Load the folder; float32 is the fastest on most CPUs at this size."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def answer(self, prompts: list[str]) -> list[str]:
        """Greedy texts for prompts that were rendered by the chat template."""
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        out = self.model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        texts = self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)
        return [text.split(END)[0] for text in texts]

    def prompt(self, run: Run) -> str:
        """What the model reads next in this run."""
        return str(
            self.tokenizer.apply_chat_template(
                run.history, tools=run.tools(), add_generation_prompt=True, tokenize=False
            )
        )


def run_all(model: Model, talks: list[Conversation]) -> list[Run]:
    """Lead all conversations to their end or their first mistake, many at a time."""
    runs = [Run(talk) for talk in talks]
    for run in runs:
        run.ask()
    while active := [run for run in runs if not run.done]:
        # Prompts of like length together: a batch is as long as its longest prompt.
        prompts = sorted(((model.prompt(run), run) for run in active), key=lambda pair: len(pair[0]))
        for start in range(0, len(prompts), _BATCH):
            chunk = prompts[start : start + _BATCH]
            for text, (_, run) in zip(model.answer([prompt for prompt, _ in chunk]), chunk, strict=True):
                run.hear(text)
    return runs
