"""Adds `aios bench` to the command line. What a bench needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aios_adapters.hookspecs import hookimpl
from aios_kernel.errors import InvalidRequest

bench = typer.Typer(help="Measure: each bench prints a table, or JSON with --json.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Full = Annotated[bool, typer.Option("--full", help="The long version.")]


@hookimpl
def aios_commands(app: Any) -> None:
    """Add the benches."""
    app.add_typer(bench, name="bench")
    app.command()(demo)


def demo(
    agents: Annotated[int, typer.Option(help="Agents of each framework.")] = 3,
    trace: Annotated[Path, typer.Option(help="Where the trace goes.")] = Path("runs/demo-trace.json"),
    baseline: Annotated[bool, typer.Option(help="Also run them without the kernel.")] = True,
) -> None:
    """Agents of four frameworks at once on the demo model, then the same agents without the kernel."""
    from aios_evals.demo.run import demo as run_demo

    if not run_demo(agents, trace, baseline=baseline):
        raise SystemExit(1)


@bench.command()
def syscalls(json: Json = False, full: Full = False) -> None:
    """What an LLM syscall costs without the model's own time, beside a bare echo."""
    from aios_evals import report
    from aios_evals.syscalls import run

    report.emit("syscalls", run(seconds=10.0 if full else 2.0), json=json)


@bench.command()
def isolation(json: Json = False, full: Full = False) -> None:
    """What the isolation levels of hosted tools cost over a plain subprocess."""
    from aios_evals import report
    from aios_evals.isolation_cost import run

    report.emit("isolation", run(1000 if full else 100), json=json)


@bench.command()
def speedup(
    json: Json = False,
    full: Full = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the recorded workloads (AIOS_DATA).")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="tau, mint; default tau, with --full both.")] = None,
    framework: Annotated[list[str] | None, typer.Option(help="langchain, autogen, llamaindex, openai.")] = None,
    agents: Annotated[int, typer.Option(help="Agents at once.")] = 16,
    steps: Annotated[int | None, typer.Option(help="Model calls an agent, about; default 1, with --full 12.")] = None,
    tool_delay: Annotated[float, typer.Option(help="Seconds a recorded tool takes.")] = 0.2,
    mode: Annotated[list[str] | None, typer.Option(help="generate_lock, kernel_fifo, kernel_round_robin.")] = None,
    server: Annotated[str | None, typer.Option(help="Also measure this OpenAI-compatible server.")] = None,
    agent: Annotated[Path | None, typer.Option(help="Compare this file's agents, no recorded work.")] = None,
) -> None:
    """The same agents with and without the kernel, on recorded work: makespan, completion, tokens, exactness."""
    from aios_evals import report
    from aios_evals.speedup import own
    from aios_evals.speedup.frameworks import walks
    from aios_evals.speedup.modes import server_versions
    from aios_evals.speedup.run import MODES, Plan, run
    from aios_evals.workloads.load import NAMES, data_folder
    from aios_kernel.config import home_of, load

    if agent is not None:
        report.emit("speedup", own.run(agent, _known(mode, MODES)), json=json)
        return
    plan = Plan(
        data=data_folder(data),
        workloads=_known(workload, NAMES) if workload or full else ["tau"],
        frameworks=_known(framework, tuple(walks())),
        agents=agents,
        steps=steps or (12 if full else 1),
        tool_delay_s=tool_delay,
        models=home_of(load()) / "models",
        modes=_known(mode, MODES),
        server=server,
    )
    versions = server_versions(server) if server else {}
    report.emit("speedup", run(plan), json=json, versions=versions)


@bench.command()
def engine(
    json: Json = False,
    full: Full = False,
    engine: Annotated[list[str] | None, typer.Option(help="torch, vllm, llamacpp, generate, transformers_cb.")] = None,
    workload: Annotated[list[str] | None, typer.Option(help="decode, prefill, agents; again for several.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Prompts at once in decode.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads of every engine.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="1m, 34m, 500m; default 34m, with --full all.")] = None,
    peers: Annotated[Path, typer.Option(help="Folder of the environments that `make bench-peers` made.")] = Path(),
    plot: Annotated[Path | None, typer.Option(help="Also draw the result, a PNG (needs matplotlib).")] = None,
) -> None:
    """Our engine and its peers in one run, on the same weights: tokens per CPU-second and per second."""
    from aios_evals import report
    from aios_evals.engine_bench.case import WORKLOADS
    from aios_evals.engine_bench.peers import ENGINES
    from aios_evals.engine_bench.plan import DTYPES, Asked
    from aios_evals.engine_bench.run import Bench
    from aios_evals.engine_bench.shapes import SHAPES
    from aios_kernel.config import home_of, load

    asked = Asked(
        engines=_known(engine, tuple(each.name for each in ENGINES)),
        models=_known(model, tuple(SHAPES)) if model else None,
        dtypes=_known(dtype, DTYPES),
        threads=threads,
        workloads=_known(workload, WORKLOADS),
        batches=batch,
        full=full,
    )
    measuring = Bench(peers.resolve(), home_of(load()) / "models")
    rows = measuring.run(asked)
    report.emit("engine", rows, json=json, versions=measuring.versions, notes=measuring.notes)
    if plot is not None:
        from aios_evals.engine_bench.plot import draw

        draw(rows, plot, f"aios bench engine, {report.cpu_name()}")


@bench.command()
def contexts(json: Json = False, full: Full = False) -> None:
    """What forking, swapping and storing a context costs, beside copying its bytes and prefilling it again."""
    from aios_evals import report
    from aios_evals.contexts import run

    report.emit("contexts", run(repeats=25 if full else 7), json=json)


@bench.command()
def grammar(
    json: Json = False,
    full: Full = False,
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Contexts in a step; again for several.")] = None,
) -> None:
    """What grammars cost in a decode step of the 34 M model: where the model keeps to them, where it is corrected."""
    from aios_evals import report
    from aios_evals.grammar_cost import run

    report.emit("grammar", run(batch or ([1, 8, 32, 128] if full else [32]), walks=12 if full else 4), json=json)


@bench.command()
def products(json: Json = False, full: Full = False) -> None:
    """The products of linear layers alone: ours beside oneDNN's and plain ones, on one thread."""
    from aios_evals import report
    from aios_evals.products import FULL_ROWS, ROWS, run

    report.emit("products", run(FULL_ROWS if full else ROWS), json=json)


@bench.command()
def roofline(
    json: Json = False,
    full: Full = False,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads of the engine; again for several.")] = None,
) -> None:
    """How long the engine's steps take beside what this machine's memory and arithmetic allow at best."""
    from aios_evals import report
    from aios_evals.engine_bench.plan import DTYPES
    from aios_evals.roofline import run
    from aios_kernel.config import home_of, load

    rows: list[dict[str, Any]] = []
    dtypes = _known(dtype, DTYPES) or DTYPES
    for model in ("34m", "500m") if full else ("34m",):
        found = run(home_of(load()) / "models", model, dtypes, threads or (1, 2))
        rows += [{"model": model, **row} for row in found]
    report.emit("roofline", rows, json=json)


@bench.command()
def lora(
    json: Json = False,
    full: Full = False,
    engine: Annotated[list[str] | None, typer.Option(help="torch, peft; again for both.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="float32, bfloat16; default float32, with --full both.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 8,
    loras: Annotated[list[int] | None, typer.Option(min=0, help="Adapters in a batch; again for several.")] = None,
    registered: Annotated[int, typer.Option(min=1, help="Adapters loaded in the case of many.")] = 1000,
    active: Annotated[int, typer.Option(min=0, help="Of these, used by requests; 0: no such case.")] = 100,
) -> None:
    """Many LoRA adapters in one batch of the 34 M model, beside the model alone, and PEFT beside both."""
    from aios_evals import report
    from aios_evals.lora_bench.run import DTYPES, ENGINES, Asked, run
    from aios_kernel.config import home_of, load

    asked = Asked(
        engines=_known(engine, ENGINES),
        dtypes=_known(dtype, DTYPES) if dtype or full else ["float32"],
        batch=batch,
        rank=rank,
        loras=loras or [0, 1, 8, 64],
        registered=registered,
        active=active,
        rounds=7 if full else 3,
    )
    rows, versions, notes = run(asked, home_of(load()) / "models")
    report.emit("lora", rows, json=json, versions=versions, notes=notes)


@bench.command()
def step(
    json: Json = False,
    full: Full = False,
    path: Annotated[list[str] | None, typer.Option(help="engine, kernel, stream; again for several.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Contexts in a step.")] = 32,
) -> None:
    """Where the CPU time of a decode step of the 34 M model goes, on the engine alone and through the kernel."""
    from aios_evals import report
    from aios_evals.step_bench.run import DTYPES, PATHS, run

    rows = run(_known(path, PATHS), _known(dtype, DTYPES), batch, steps=3200 if full else 320)
    report.emit("step", rows, json=json)


@bench.command()
def overhead(
    json: Json = False,
    full: Full = False,
    path: Annotated[list[str] | None, typer.Option(help="engine, kernel, socket, stream; again for several.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clients, each with one call open.")] = 32,
) -> None:
    """The same token work on the engine itself, through the kernel and its socket: tokens per CPU-second, first one."""
    from aios_evals import report
    from aios_evals.overhead_bench.run import DTYPES, PATHS, run

    rows = run(_known(path, PATHS), _known(dtype, DTYPES), batch, rounds=60 if full else 12)
    report.emit("overhead", rows, json=json)


@bench.command()
def memory(
    json: Json = False,
    full: Full = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the recorded workloads (AIOS_DATA).")] = None,
    only: Annotated[list[str] | None, typer.Option(help="recall, adds, search; again for several.")] = None,
) -> None:
    """What the memory finds of recorded conversations, and how fast it writes and searches beside chromadb."""
    from aios_evals import report
    from aios_evals.memory_bench import locomo, speed
    from aios_evals.workloads.load import data_folder
    from aios_kernel.memory import SentenceTransformerEmbedder

    parts = _known(only, ("recall", "adds", "search"))
    rows: list[dict[str, Any]] = []
    if "recall" in parts:
        rows += locomo.recall(locomo.load(data_folder(data)), SentenceTransformerEmbedder())
    if "adds" in parts:
        rows += [speed.adds(1_000, 300, writers=1), speed.adds(10_000, 300, writers=64)]
    if "search" in parts:
        for notes, spaces in [(1_000_000, 1_000), (100_000, 1)] if full else [(20_000, 20), (20_000, 1)]:
            rows += speed.search(notes, spaces, 2_000)
    report.emit("memory", rows, json=json)


@bench.command()
def schedule(
    json: Json = False,
    full: Full = False,
    trace: Annotated[Path | None, typer.Option(help="Folder of sessions.jsonl.gz; default below AIOS_DATA.")] = None,
    programs: Annotated[str | None, typer.Option(help="Programs at once, such as 8,32,64.")] = None,
    pool: Annotated[str, typer.Option(help="Tokens of KV on the device.")] = "900k",
    host: Annotated[str | None, typer.Option(help="Tokens of KV in host memory, such as 0,1M.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Names, by comma or again.")] = None,
    gpu: Annotated[str, typer.Option(help="h200, h100, a100.")] = "h200",
    model: Annotated[str, typer.Option(help="llama-3.1-8b, qwen2.5-7b.")] = "llama-3.1-8b",
    loop: Annotated[str, typer.Option(help="closed, or open with recorded arrivals.")] = "closed",
    sessions: Annotated[int, typer.Option(help="Sessions to run.")] = 120,
    think_cap: Annotated[float, typer.Option(help="Longest pause in seconds.")] = 60.0,
    part: Annotated[str, typer.Option(help="Of the file: the first sessions, or the last.")] = "first",
    plot: Annotated[Path | None, typer.Option(help="Also draw into this folder (needs matplotlib).")] = None,
    ablation: Annotated[bool, typer.Option(help="The program policy with each mechanism off in turn.")] = False,
    calibrate: Annotated[bool, typer.Option(help="Instead: the cost model against our engine.")] = False,
    decisions: Annotated[bool, typer.Option(help="Instead: what a decision of each policy costs.")] = False,
) -> None:
    """Policies on recorded agent sessions in a simulated engine: completion, reuse, swaps, fairness, and the bound."""
    from aios_evals import report
    from aios_evals.schedule import run as bench_run

    if calibrate:
        from aios_evals.schedule.calibrate import run as calibrated

        report.emit("schedule_calibration", calibrated(25 if full else 7), json=json)
        return
    if decisions:
        from aios_evals.schedule.decisions import run as decided

        report.emit("schedule_decisions", decided(), json=json)
        return
    asked = bench_run.Asked(trace, programs, pool, host, policy, gpu, model, loop, sessions, think_cap, part, full)
    todo = bench_run.ablations(asked) if ablation else bench_run.cells(asked)
    outcomes = bench_run.run(todo)
    report.emit("schedule", [outcome.row for outcome in outcomes], json=json, notes=bench_run.notes(asked))
    if plot is not None:
        from aios_evals.schedule.plot import draw

        title = f"{asked.sessions} agent sessions, {model} on {gpu} (simulated), pool {pool}"
        draw(outcomes, plot, title, bench_run.tokens(pool))


@bench.command()
def contention(
    json: Json = False,
    full: Full = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the recorded workloads (AIOS_DATA).")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="The kernel's policies, engine_lru, vllm; again for several.")
    ] = None,
    programs: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 12,
    peers: Annotated[Path, typer.Option(help="Folder of the environments that `make bench-peers` made.")] = Path(),
) -> None:
    """Recorded agent sessions, scaled down, that overload a real engine: our policies, plain LRU, and vLLM served."""
    from aios_evals import report
    from aios_evals.contention import run as contending
    from aios_evals.terminated import ended_in_order
    from aios_evals.workloads.load import data_folder
    from aios_kernel.config import home_of, load

    asked = contending.Asked(
        data=data_folder(data),
        models=home_of(load()) / "models",
        peers=peers.resolve(),
        policies=policy or contending.POLICIES,
        programs=programs,
        repeats=3 if full else 1,
    )
    with ended_in_order():
        rows, notes = contending.run(asked)
    report.emit("contention", rows, json=json, notes=notes)


@bench.command()
def exactness(json: Json = False, full: Full = False) -> None:
    """Whether the demo agents say the same with and without the kernel, with snapshots on and off."""
    from aios_evals import report
    from aios_evals.demo.exactness import run

    report.emit("exactness", run(3 if full else 1), json=json)


@bench.command()
def adapters(
    json: Json = False,
    full: Full = False,
    framework: Annotated[
        list[str] | None, typer.Option(help="langchain, autogen, llamaindex, openai, metagpt; again for several.")
    ] = None,
    metagpt: Annotated[Path, typer.Option(help="Interpreter of MetaGPT's environment.")] = Path(
        ".venv-metagpt/bin/python"
    ),
) -> None:
    """What an adapter adds to a model call and a tool call inside an agent, and to any call outside."""
    from aios_evals import report
    from aios_evals.adapters_bench.run import names, run

    outcome = run(_known(framework, names()), 5000 if full else 1000, metagpt.absolute())
    report.emit("adapters", outcome.rows, json=json, versions=outcome.versions, notes=outcome.notes)


@bench.command()
def moe(
    json: Json = False,
    full: Full = False,
    routing: Annotated[list[str] | None, typer.Option(help="uniform, topics, trained; again for several.")] = None,
    gb_per_s: Annotated[
        float, typer.Option(help="Of the simulated device that experts are read from; 0: the files, pages forgotten.")
    ] = 1.0,
) -> None:
    """A mixture of experts with a quarter to all of them in memory: read ahead, or on demand; what is possible."""
    from aios_evals import report
    from aios_evals.moe_bench.models import ROUTINGS
    from aios_evals.moe_bench.run import Plan, run

    rounds, tokens = (12, 64) if full else (4, 16)
    plan = Plan(routings=_known(routing, ROUTINGS), rounds=rounds, tokens=tokens, bytes_per_s=gb_per_s * 1e9)
    source = (
        f"a simulated device of {gb_per_s:g} GB/s" if gb_per_s else "their files, the page cache told to forget them"
    )
    report.emit("moe", run(plan), json=json, notes=[f"experts are read from {source}"])


@bench.command()
def policies(json: Json = False, full: Full = False) -> None:
    """What one decision of each scheduling policy costs, with 64 running contexts and up to 10,000 that wait."""
    from aios_evals import report
    from aios_evals.policies_bench import run

    report.emit("policies", run(steps=2000 if full else 300), json=json)


@bench.command()
def attack(
    json: Json = False,
    full: Full = False,
    policy: Annotated[list[str] | None, typer.Option(help="Of the scheduler; again for several.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measure so often, in turns, and give medians.")] = 3,
) -> None:
    """One agent floods, nine want their work done: their p99, the Jain index and the throughput under each policy."""
    from aios_evals import report
    from aios_evals.attack import POLICIES, run

    report.emit("attack", run(_known(policy, POLICIES), calls=240 if full else 60, repeats=repeats), json=json)


@bench.command()
def scale(
    json: Json = False,
    full: Full = False,
    policy: Annotated[list[str] | None, typer.Option(help="Of the scheduler; again for several.")] = None,
) -> None:
    """Ten thousand agents on the fake engine: whether all complete, CPU of a syscall, memory of an idle agent."""
    from aios_evals import report
    from aios_evals.scale import POLICIES, run

    report.emit("scale", run(policies=_known(policy, POLICIES), rounds=10 if full else 2), json=json)


@bench.command()
def tools(json: Json = False, full: Full = False) -> None:
    """What a tool call costs beside the tool: in the agent's process, hosted, recorded, isolated, as a long job."""
    from aios_evals import report
    from aios_evals.tools_bench import run

    rows, notes = run(calls=2000 if full else 200)
    report.emit("tools", rows, json=json, notes=notes)


@bench.command()
def overload(json: Json = False, full: Full = False) -> None:
    """Ten times the load that the kernel takes: goodput, and how soon the others are told when to come again."""
    from aios_evals import report
    from aios_evals.overload import run

    report.emit("overload", run(seconds=30.0 if full else 5.0), json=json)


def _known(asked: list[str] | None, names: tuple[str, ...]) -> list[str]:
    for name in asked or ():
        if name not in names:
            raise InvalidRequest(f'"{name}" is not known', fix=f"choose from: {', '.join(names)}")
    return asked or [*names]


@bench.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A result written with --json.")],
    after: Annotated[Path, typer.Argument(help="Another result of the same bench.")],
    json: Json = False,
    fail_above: Annotated[str | None, typer.Option(help="Fail when a figure got worse by more, such as 5%.")] = None,
) -> None:
    """Compare two results figure by figure."""
    from aios_evals import report
    from aios_evals.compare import compare as compared
    from aios_evals.compare import worst

    try:
        limit = float(fail_above.rstrip("%")) if fail_above else None
        changes = compared(report.load_report(before), report.load_report(after))
    except ValueError as error:
        raise InvalidRequest(str(error), fix="aios bench compare --help") from error
    report.emit("compare", changes, json=json)
    if limit is not None and worst(changes) > limit:
        raise SystemExit(1)
