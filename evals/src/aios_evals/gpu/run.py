"""The whole run: sections in turn, each within its time; what fails is a row, and the rest goes on."""

from __future__ import annotations

import json as codec
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_evals import report
from aios_kernel.errors import ConfigError, NotFound

Row = dict[str, Any]
_GRACE_S = 20.0
"""Behind the budget a run is ended from outside: a section looks at the clock between two measurements only."""
_NOTES = (
    "random weights in the shapes of published models; shares are of the ceilings measured in this run",
    "prefill: arithmetic of the prompt (attention at half the square) over its time; decode: weights that some token "
    "needs and all KV over the median step; efficiency: lower bound over measured (gpu/agents.py)",
    "agents and sessions run on the first shape only; generate answers only some of the conversations",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asked for; None is everything."""

    out: Path
    budget_s: float = 570.0
    device: str = "auto"
    tiny: bool = False
    models: Sequence[str] | None = None
    sections: Sequence[str] | None = None
    data: Path | None = None
    json: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the run for one model, and the seconds that it may take on a GPU."""

    name: str
    seconds: float
    measure: Callable[[Any], Iterator[Row]]
    first_only: bool = False


def sections() -> tuple[Section, ...]:
    """In the order in which they run: what needs the model as transformers has it comes before the engine's."""
    from aios_evals.gpu import agents, correctness, lora, rates, swaps

    return (
        Section("exactness", 30, correctness.exactness),
        Section("peers", 60, agents.peers, first_only=True),
        Section("agreement", 30, correctness.agreement),
        Section("prefill", 20, rates.prefills),
        Section("decode", 40, rates.decodes),
        Section("swap", 15, swaps.swaps),
        Section("fork", 10, swaps.forks),
        Section("lora", 30, lora.loras),
        Section("agents", 60, agents.agents, first_only=True),
        Section("sessions", 100, agents.sessions, first_only=True),
    )


def run(asked: Asked) -> int:
    """Measure, write `gpu.json`, `gpu.txt` and `gpu.png` to a folder and print; gives how many rows failed.

    Raises:
        ConfigError: there is no such device, shape or section.
    """
    from aios_evals.gpu.bench import Bench

    until = time.monotonic() + asked.budget_s
    device = _device(asked.device)
    bench = Bench(device, asked.tiny, _data(asked.data), until)
    chosen = [section for section in sections() if asked.sections is None or section.name in asked.sections]
    _check(asked)
    _tell(f"{device}, {'small' if asked.tiny else 'full'} shapes, {asked.budget_s:.0f} s")
    watchdog = threading.Timer(asked.budget_s + _GRACE_S, _give_up, (bench.rows, asked, device))
    watchdog.daemon = True
    watchdog.start()
    _ceilings(bench)
    _models(bench, asked, chosen)
    watchdog.cancel()
    return _finish(bench.rows, asked, device)


def _give_up(rows: Sequence[Row], asked: Asked, device: Any) -> None:
    """End a run that hangs; what it has measured is written before."""
    measured = [*rows, {"section": "run", "model": "", "error": "it did not end in time; the last section hangs"}]
    _finish(measured, asked, device)
    sys.stdout.flush()
    os._exit(1)


def _models(bench: Any, asked: Asked, chosen: Sequence[Section]) -> None:
    from aios_evals.gpu.bench import Subject
    from aios_evals.gpu.shapes import SHAPES

    shapes = [shape for shape in SHAPES if asked.models is None or shape.name in asked.models]
    for number, shape in enumerate(shapes):
        subject = Subject(shape, bench)
        for section in chosen:
            if not (section.first_only and number):
                _measure(bench, section, shape.name, lambda section=section, subject=subject: section.measure(subject))
        subject.close()


def _measure(bench: Any, section: Section, model: str, rows: Callable[[], Iterator[Row]]) -> None:
    """One section of one model; what goes wrong is a row of its own."""
    common: Row = {"section": section.name, "model": model}
    began = time.monotonic()
    bench.limit = began + section.seconds * (10 if bench.tiny else 1)
    if bench.left_s <= 0:
        bench.rows.append({**common, "error": "not run: the time of the whole run was up"})
        return
    try:
        for row in rows():
            bench.rows.append({**common, **row})
            _tell(f"{section.name} {model}: {_words(row)}")
    except Exception as error:  # noqa: BLE001 - one section must not end the others
        bench.rows.append({**common, "error": f"{type(error).__name__}: {str(error).strip()[:300]}"})
        _tell(f"{section.name} {model} failed: {bench.rows[-1]['error']}")
    _tell(f"{section.name} {model}: {time.monotonic() - began:.1f} s")


def _ceilings(bench: Any) -> None:
    from aios_evals.gpu import ceilings

    def rows(_subject: object = None) -> Iterator[Row]:
        bench.ceilings = ceilings.measure(bench.device, bench.dtype, tiny=bench.tiny)
        yield bench.ceilings.row()

    _measure(bench, Section("ceilings", 20, rows), "", rows)


def _finish(rows: Sequence[Row], asked: Asked, device: Any) -> int:
    asked.out.mkdir(parents=True, exist_ok=True)
    made = report.report("gpu", rows, versions=_versions(), notes=[*_NOTES, _place(device)])
    made["command"] = " ".join(["python -m aios_evals gpu", *sys.argv[2:]])
    (asked.out / "gpu.json").write_text(codec.dumps(made, indent=2) + "\n")
    tables = report.tables({name: [row for row in rows if row["section"] == name] for name in _names(rows)})
    (asked.out / "gpu.txt").write_text(tables)
    _draw(rows, asked.out / "gpu.png")
    print(codec.dumps(made) if asked.json else tables)
    return sum("error" in row for row in rows)


def _draw(rows: Sequence[Row], path: Path) -> None:
    from aios_evals.gpu.plot import draw

    try:
        draw(rows, path)
    except (ConfigError, ImportError) as error:
        _tell(f"no picture: {error}")


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["section"] for row in rows))


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device", fix="run it on a machine with a GPU, or with --tiny on the CPU")
    return device


def _data(given: Path | None) -> Path | None:
    from aios_evals.workloads.load import data_folder

    try:
        return data_folder(given)
    except NotFound:
        return None


def _check(asked: Asked) -> None:
    from aios_evals.gpu.shapes import SHAPES

    for kind, wanted, known in (
        ("model", asked.models, [shape.name for shape in SHAPES]),
        ("section", asked.sections, [section.name for section in sections()]),
    ):
        strange = [name for name in wanted or () if name not in known]
        if strange:
            raise ConfigError(f"there is no {kind} {strange[0]}", fix=f"choose among {', '.join(known)}")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        pass
    return found


def _place(device: Any) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU: no GPU was measured"
    return f"device: {name}"


def _words(row: Row) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
