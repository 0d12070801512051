"""The scheduling simulator: its cost model, its bookkeeping, and that every policy serves every call once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aios_evals.schedule.cells import OFF, Cell, maker, policy_names, run_cell
from aios_evals.schedule.cost import GPUS, MODELS, Cost, bound, critical_s
from aios_evals.schedule.memory import Memory
from aios_evals.schedule.run import Asked, ablations, cells, tokens
from aios_evals.schedule.simulator import Setup, Simulation
from aios_evals.schedule.state import Tally
from aios_evals.schedule.workload import Call, Program, load_arrivals, load_sessions, random_programs
from aios_kernel.errors import InvalidRequest, NotFound
from aios_kernel.scheduler.protocol import Arrived, Event, Finished, Options, Plan, Policy, Residency, View

COST = Cost(GPUS["h200"], MODELS["llama-3.1-8b"])
POLICIES = policy_names()


class Ledger:
    """Wraps a policy: notes what it is told, and checks what the engine shows."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.name = inner.name
        self.parks = getattr(inner, "parks", False)
        self.engine = getattr(inner, "engine", False)
        self.arrived: list[int] = []
        self.finished: list[int] = []

    def observe(self, event: Event, now_s: float) -> None:
        if isinstance(event, Arrived):
            self.arrived.append(event.task)
        elif isinstance(event, Finished):
            self.finished.append(event.task)
        self.inner.observe(event, now_s)

    def decide(self, view: View, now_s: float) -> Plan:
        return self.inner.decide(view, now_s)


def play(
    name: str, seed: int, *, pool: int, host: int, slots: int = 3, options: Options | None = None
) -> tuple[Ledger, Tally]:
    ledgers: list[Ledger] = []

    def make(simulation: Simulation) -> Ledger:
        ledgers.append(Ledger(maker(name, options or {})(simulation)))
        return ledgers[0]

    def check(simulation: Simulation) -> None:
        memory = simulation.memory
        resident = sum(memory.blocks(t.kv) for t in simulation.open.values() if t.residency is Residency.RESIDENT)
        parked = [run.parked for run in simulation.runs.values() if run.parked is not None]
        resident += sum(memory.blocks(p.length) for p in parked if p.residency is Residency.RESIDENT)
        assert memory.pinned == resident <= memory.pool
        assert memory.cache.total <= memory.pool - memory.pinned
        assert memory.host_cache.total + memory.host_pinned <= memory.host

    setup = Setup(COST, pool, host, max_batch=4, max_step_tokens=256)
    simulation = Simulation(setup, random_programs(seed), make, slots=slots, watch=check)
    return ledgers[0], simulation.run()


def expect_all_once(name: str, seed: int, pool: int, host: int, options: Options | None = None) -> Tally:
    ledger, tally = play(name, seed, pool=pool, host=host, options=options)
    calls = sum(len(program.calls) for top in random_programs(seed) for program in top.family())
    assert len(ledger.arrived) == len(set(ledger.arrived)) == calls
    assert sorted(ledger.finished) == sorted(ledger.arrived)
    assert tally.ended == calls
    assert tally.prefilled >= tally.necessary or tally.failed
    return tally


def sizes(seed: int) -> tuple[int, int]:
    """Pools from just above the largest context to roomy; host memory from none to plenty."""
    return [(704, 0), (1104, 0), (704, 500), (1104, 2000), (8000, 0)][seed % 5]


@pytest.mark.parametrize("name", POLICIES)
def test_every_call_ends_exactly_once(name: str) -> None:
    for seed in range(40):
        expect_all_once(name, seed, *sizes(seed))


@pytest.mark.parametrize("label", OFF)
def test_every_call_ends_with_any_mechanism_off(label: str) -> None:
    for seed in range(40):
        assert expect_all_once("program", seed, *sizes(seed), OFF[label]).failed == 0


def test_the_program_policy_fails_no_call() -> None:
    for seed in range(100):
        assert expect_all_once("program", seed, *sizes(seed)).failed == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", POLICIES)
def test_ten_thousand_seeds(name: str) -> None:
    for seed in range(10_000):
        tally = expect_all_once(name, seed, *sizes(seed))
        assert name != "program" or not tally.failed


def test_the_same_seed_gives_the_same_run() -> None:
    for name in POLICIES:
        first, second = (play(name, 5, pool=1104, host=500)[1] for _ in range(2))
        assert first == second


def test_a_policy_that_runs_nothing_is_found_out() -> None:
    class Idle:
        name = "idle"
        parks = False

        def observe(self, event: Event, now_s: float) -> None:
            pass

        def decide(self, view: View, now_s: float) -> Plan:
            return Plan()

    with pytest.raises(RuntimeError, match="idle runs nothing"):
        Simulation(Setup(COST, 1000), random_programs(1), lambda _: Idle(), slots=2).run()


def test_one_call_takes_what_the_formulas_say() -> None:
    """A prompt of 1,000 tokens in one step, then two single steps; worked out by hand from the data sheet."""
    program = Program("p", (Call(1000, 3, 0),))
    tally = Simulation(Setup(COST, 10_000), [program], maker("engine_lru", {}), slots=1).run()
    prefill = 2 * 8.03e9 * 1000 / (989e12 * 0.5) + 4 * 32 * 32 * 128 * 1000 * 500 / (989e12 * 0.5)
    decode = 2 * 2 * 8.03e9 / (4.8e12 * 0.75) + 131_072 * (1001 + 1002) / (4.8e12 * 0.75)
    assert tally.now_s == pytest.approx(prefill + decode + 3 * 1e-3, rel=1e-9)
    assert tally.busy_s == tally.now_s
    assert (tally.prefilled, tally.necessary, tally.steps) == (1000, 1000, 3)


def test_like_steps_cost_the_same_one_by_one() -> None:
    together = COST.steps_s(7, [(512, 300)], 3, 9_000)
    apart = sum(COST.steps_s(1, [(512, 300 + 512 * n)], 3, 9_000 + 3 * n) for n in range(7))
    assert together == pytest.approx(apart, rel=1e-12)


def test_known_figures_of_the_models() -> None:
    assert MODELS["llama-3.1-8b"].kv_bytes == 131_072
    assert MODELS["qwen2.5-7b"].kv_bytes == 57_344
    assert 989e12 / (2 * MODELS["llama-3.1-8b"].params) == pytest.approx(61_600, rel=0.001)


def test_no_policy_beats_the_bound() -> None:
    for seed in range(20):
        programs = random_programs(seed)
        for name in POLICIES:
            simulation = Simulation(Setup(COST, 8000), programs, maker(name, {}), slots=3)
            tally = simulation.run()
            assert tally.now_s >= bound(COST, programs, 3, 256).makespan_s
            assert all(tally.completion_s[p.name] >= critical_s(COST, p) for p in programs)


def test_evicted_tails_go_to_the_host_and_are_found_there() -> None:
    memory = Memory(160, 64, 16, offload=True)
    memory.pin(0, 96)
    memory.leave("a", 96)
    memory.pin(0, 112)
    assert memory.found("a") == (48, 48)
    memory.pin(112, 160)
    assert memory.found("a") == (0, 64)  # host memory keeps the front
    assert memory.written == 96


def test_the_engine_alone_reuses_what_it_offloaded() -> None:
    calls = tuple(Call(400 + 20 * n, 4, 400 + 20 * (n - 1) if n else 0, 0.2) for n in range(6))
    programs = [Program(name, calls) for name in "abc"]
    none, some = (
        Simulation(Setup(COST, 704, host), programs, maker("engine_lru", {}), slots=3).run() for host in (0, 4000)
    )
    assert some.necessary <= some.prefilled < none.prefilled
    assert some.swapped > 0 == none.swapped


def test_sub_agents_run_before_the_call_that_waits_for_them() -> None:
    child = Program("p/c", (Call(50, 2, 0), Call(80, 2, 50, 30.0)))
    program = Program("p", (Call(100, 2, 0), Call(150, 2, 100, 1.0, children=(child,))))
    tally = Simulation(Setup(COST, 4000), [program], maker("program", {}), slots=1).run()
    assert tally.now_s > 30.0
    assert (tally.ended, list(tally.completion_s)) == (4, ["p"])


@pytest.mark.parametrize(("text", "count"), [("900k", 900_000), ("1M", 1_000_000), ("0", 0), ("1.5m", 1_500_000)])
def test_token_counts_are_read(text: str, count: int) -> None:
    assert tokens(text) == count


def test_what_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOS_DATA", raising=False)
    with pytest.raises(NotFound, match="kv-cache-tester"):
        cells(Asked())
    (tmp_path / "sessions.jsonl.gz").touch()
    for asked in (
        Asked(trace=tmp_path, policies=["best"]),
        Asked(trace=tmp_path, gpu="b200"),
        Asked(trace=tmp_path, model="gpt"),
        Asked(trace=tmp_path, loop="half"),
        Asked(trace=tmp_path, pool="many"),
        Asked(trace=tmp_path, part="middle"),
    ):
        with pytest.raises(InvalidRequest):
            cells(asked)
    assert len(cells(Asked(trace=tmp_path, programs="8,16", host="0,1M", policies=["fifo,program"]))) == 8
    assert len(ablations(Asked(trace=tmp_path, programs="8", host="0"))) == 1 + len(OFF)


@pytest.fixture
def sessions() -> Path:
    folder = Path(os.environ.get("AIOS_DATA", "")) / "agent_sessions"
    if not (folder / "sessions.jsonl.gz").exists():
        pytest.skip("needs AIOS_DATA with agent_sessions")
    return folder


def test_sessions_are_cut_at_the_window(sessions: Path) -> None:
    programs = load_sessions(sessions, 40)
    assert len(programs) == 40
    for top in programs:
        for program in top.family():
            for before, call in zip((None, *program.calls), program.calls, strict=False):
                assert call.prompt + call.output <= 131_072
                assert 0 <= call.shared < call.prompt
                assert call.shared <= (before.prompt + before.output if before else 0)
                assert 0 <= call.think_s <= 60


def test_a_small_cell_shows_the_point(sessions: Path) -> None:
    """Sixteen sessions in a pool for a few: the engine alone thrashes, the program policy does not."""
    alone, ours = (
        run_cell(Cell(name, 16, 400_000, 0, sessions, sessions=16)).row for name in ("engine_lru", "program")
    )
    assert alone["amplification"] > 4 > 3 > ours["amplification"] >= 1
    assert ours["mean_s"] < alone["mean_s"] / 1.1
    assert 0 < alone["efficiency"] < ours["efficiency"] < 1
    expected = {
        "policy", "programs", "pool", "host", "hit_rate", "amplification", "mean_s", "p50_s", "p95_s", "p99_s",
        "wait_mean_s", "wait_p95_s", "turnaround_mean_s", "turnaround_p95_s", "makespan_s", "idle",
        "swap_tokens", "jain", "efficiency",
    }  # fmt: skip
    assert set(ours) == expected
    assert ours["wait_mean_s"] <= ours["turnaround_mean_s"] < ours["mean_s"]


def test_the_last_sessions_are_others_than_the_first(sessions: Path) -> None:
    first, last = (load_sessions(sessions, 20, part=part) for part in ("first", "last"))
    assert len(first) == len(last) == 20
    assert not {program.name for program in first} & {program.name for program in last}


def test_the_open_loop_starts_programs_at_recorded_times(sessions: Path) -> None:
    """And the same work comes out of it: every call, on the second model too."""
    arrivals = sessions.parent / "mooncake" / "conversation_trace.jsonl.gz"
    if not arrivals.exists():
        pytest.skip("needs AIOS_DATA with mooncake")
    starts = load_arrivals(arrivals, 16, 0.01)
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(16 / 0.01)
    rows = {
        (name, model): run_cell(Cell(name, 8, 400_000, 0, sessions, model=model, arrivals=arrivals, sessions=16)).row
        for name in ("engine_lru", "program")
        for model in MODELS
    }
    for row in rows.values():
        assert row["makespan_s"] >= starts[-1] / 10
        assert row["amplification"] >= 1
    for model in MODELS:
        assert rows["program", model]["amplification"] <= rows["engine_lru", model]["amplification"]
    assert rows["program", "qwen2.5-7b"]["mean_s"] < rows["program", "llama-3.1-8b"]["mean_s"]


def stream(patience: float) -> float:
    """How long the second call of an old program waits for its place while new, small programs keep coming."""
    old = Program("old", (Call(300, 40, 0), Call(400, 5, 340, 2.0)))
    young = [Program(f"y{n}", (Call(200, 60, 0),)) for n in range(600)]
    arrived: list[float] = []
    started: list[float] = []

    def look(simulation: Simulation) -> None:
        run = simulation.runs.get("old")
        if run is not None and run.task is not None and run.index == 1:
            arrived.append(run.task.arrived_s)
            if run.task.residency is not Residency.QUEUED:
                started.append(simulation.now_s)

    options: Options = {"order": "service", "patience": patience, "hold": 0.0}
    setup = Setup(COST, 704, 0, max_batch=4, max_step_tokens=256)
    programs = [old, *young]
    Simulation(setup, programs, maker("program", options), slots=8, watch=look).run()
    return started[0] - arrived[0]


def test_ageing_bounds_the_wait_behind_a_stream_of_new_programs() -> None:
    """Least attained service alone would let every newcomer past the old program."""
    assert stream(patience=1e12) > 20.0
    assert stream(patience=0.0) < 5.0


def test_whoever_is_due_is_overtaken_by_no_new_program() -> None:
    checked = 0
    for seed in range(400):
        watched: list[Overtaking] = []

        def make(simulation: Simulation, kept: list[Overtaking] = watched) -> Overtaking:
            kept.append(Overtaking(maker("program", {"patience": 2e-5})(simulation)))
            return kept[0]

        setup = Setup(COST, sizes(seed)[0], sizes(seed)[1], max_batch=4, max_step_tokens=256)
        Simulation(setup, random_programs(seed, programs=12), make, slots=12).run()
        checked += watched[0].checked
    assert checked > 100


class Overtaking(Ledger):
    """Checks that no program comes in before one that is due and came earlier."""

    def __init__(self, inner: Policy) -> None:
        super().__init__(inner)
        self.checked = 0
        self.known: set[str] = set()

    def decide(self, view: View, now_s: float) -> Plan:
        in_already = {parked.program for parked in view.parked} | self.known
        plan = self.inner.decide(view, now_s)
        waiting = self.inner.waiting  # type: ignore[attr-defined]
        coming = {*plan.admit, *(task.id for task in view.tasks if task.program in plan.fetch)}
        due = [task.id for task in waiting.due(now_s) if task.program not in in_already]
        head = next((place for place, number in enumerate(due) if number not in coming), None)
        for task in view.tasks:
            if task.id in plan.admit:
                if head is not None and task.program not in in_already:
                    self.checked += 1
                    assert task.id in due[:head]
                self.known.add(task.program)
        return plan


def test_nobody_is_overtaken_by_a_program_that_comes_much_later() -> None:
    """Ageing in units of service: a newcomer passes only those that came within a multiple of its own need."""
    old = Program("old", (Call(300, 40, 0),))
    young = [Program(f"y{n:03}", (Call(200, 60, 0), Call(280, 60, 260, 0.01))) for n in range(300)]
    order: list[str] = []

    def look(simulation: Simulation) -> None:
        for run in simulation.runs.values():
            if run.task is not None and run.task.residency is Residency.RESIDENT and run.name not in order:
                order.append(run.name)

    setup = Setup(COST, 704, 0, max_batch=4, max_step_tokens=256)
    Simulation(setup, [*young[:20], old, *young[20:]], maker("program", {}), slots=24, watch=look).run()
    assert order.index("old") < 40


def test_a_decision_costs_something_and_is_reported() -> None:
    from aios_evals.schedule.decisions import run

    rows = {(row["policy"], row["programs"]): row for row in run(repeats=20)}
    assert rows["program", 10_000]["decision_us"] > 0
    assert {"fifo", "program", "round_robin"} <= {policy for policy, _ in rows}


def test_the_figures_of_a_machine_are_found_again() -> None:
    """Fitting on steps that the model itself has timed gives back its overhead, arithmetic and bandwidths."""
    from aios_evals.schedule.calibrate import Timed, fit

    shape = MODELS["qwen2.5-7b"]
    true = Cost(GPUS["h200"], shape)
    cases = [([(n, before)], []) for n in (512, 1024, 4096) for before in (0, 4000, 30_000)]
    cases += [([(256, 0)], [9_000] * 8), ([(512, 0)], [60_000] * 8), ([], [500]), ([], [30_000])]
    timed = [Timed(c, d, true.steps_s(1, c, len(d), sum(d))) for c, d in cases]
    found = fit(shape, timed)
    for chunks, contexts in (([(700, 100)], [5_000] * 4), ([], [12_000])):
        expected = true.steps_s(1, chunks, len(contexts), sum(contexts))
        assert found.steps_s(1, chunks, len(contexts), sum(contexts)) == pytest.approx(expected, rel=0.01)
