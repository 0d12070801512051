"""Scores the demo model on held-out prompts: ``python -m aios_evals.demo_model.evaluate``."""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch

from aios_evals.demo_model.agent import Model, Run, run_all
from aios_evals.demo_model.data import Conversation, conversation

#: Where the shipped model lies in a checkout.
SHIPPED: Final = Path(__file__).parents[4] / "kernel/src/aios_kernel/models/demo"


def held_out(number: int, first: int = 0) -> list[Conversation]:
    """Conversations of names, notes and numbers that the training never sees."""
    return [conversation(seed, "heldout") for seed in range(first, first + number)]


def score(model: Model, talks: list[Conversation]) -> dict[str, Any]:
    """Share of conversations and of turns, by kind of job, in which every call and the answer are exact."""
    started = time.monotonic()
    runs = run_all(model, talks)
    right, asked = _by_kind(runs)
    wrong = [run for run in runs if run.mistake]
    exact = len(runs) - len(wrong)
    kinds = {kind: {"exact": right[kind], "n": asked[kind]} for kind in sorted(asked)}
    return {
        "conversations": len(runs),
        "exact": exact,
        "exact_share": exact / len(runs),
        "turns": sum(asked.values()),
        "turns_exact": sum(right.values()),
        "kinds": kinds,
        "mistakes": [
            {"question": run.talk.turns[run.at].question, "mistake": run.mistake} for run in runs if run.mistake
        ],
        "time_s": round(time.monotonic() - started, 1),
    }


def _by_kind(runs: list[Run]) -> tuple[Counter[str], Counter[str]]:
    """Right and asked turns; turns after a mistake were never asked."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for run in runs:
        for at, turn in enumerate(run.talk.turns[: run.at + 1]):
            asked[turn.kind] += 1
            right[turn.kind] += at < run.at
    return right, asked


def _print_table(result: dict[str, Any]) -> None:
    for mistake in result["mistakes"]:
        print(f"WRONG {mistake['question']!r}\n      {mistake['mistake']}")
    for kind, row in result["kinds"].items():
        print(f"{kind:16} {row['exact']:4} of {row['n']:4}")
    print(f"conversations    {result['exact']:4} of {result['conversations']:4}  {result['exact_share']:.1%}")
    print(f"turns            {result['turns_exact']:4} of {result['turns']:4}  in {result['time_s']} s")


def main() -> None:
    """Read the command line and score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--n", type=int, default=500, help="number of conversations")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    model = Model(options.model, getattr(torch, options.dtype))
    result = score(model, held_out(options.n, options.first))
    if options.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print_table(result)


if __name__ == "__main__":
    main()
