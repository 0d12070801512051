"""Workflows through a real kernel: data, order, failure, remote steps in real processes."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_adapters.workflow import StepFailed, Workflow
from aios_kernel import errors

WORKER = """
import sys
import aios_adapters as aios

def shout(price: float, loud: bool) -> dict:
    if price < 0:
        raise ValueError("negative")
    if price > 1000:
        sys.exit(3)
    aios.memory.add(f"the price was {price}")
    return {"text": f"PRICE {price}" if loud else str(price)}

aios.workflow.serve(shout, "shout")
"""


@dataclasses.dataclass
class Price:
    item: str
    each: float


def order() -> Workflow:
    flow = Workflow("order")

    @flow.step()
    def price(item: str) -> Price:
        return Price(item, 12.5)

    @flow.step(after=[price])
    async def total(price: Price, count: int = 2) -> float:
        await asyncio.sleep(0)
        return price.each * count

    @flow.step(after=["price", total])
    def report(price: Price, total: float) -> str:
        return f"{price.item}: {total:g}"

    return flow


def test_outputs_go_where_their_name_is_asked_for(fake_kernel: KernelHandle) -> None:
    run = order().run(item="kiwi_7", count=4)
    assert run.outputs == {"price": {"item": "kiwi_7", "each": 12.5}, "total": 50.0, "report": "kiwi_7: 50"}


def test_outputs_keep_their_types(fake_kernel: KernelHandle) -> None:
    flow = Workflow("typed")

    @flow.step()
    def price() -> Price:
        return Price("kiwi_7", 12.5)

    run = flow.run()
    assert run[price] == Price("kiwi_7", 12.5)
    assert run["price"] == {"item": "kiwi_7", "each": 12.5}


def test_models_and_kinds_of_text_travel(fake_kernel: KernelHandle) -> None:
    import pydantic

    class Fancy(str):
        """Like LangChain's `message.text`."""

    class Model(pydantic.BaseModel):
        text: str

    flow = Workflow("models")

    @flow.step()
    def text() -> str:
        return Fancy("plain")

    def model(text: str) -> Model:
        return Model(text=text)

    def read(model: Model) -> str:
        return type(model).__name__ + " " + model.text

    for function in (model, read):  # their annotations are local names
        function.__annotations__ = {k: {"Model": Model, "str": str}[v] for k, v in function.__annotations__.items()}
    modelled = flow.step(after=[text])(model)
    flow.step(after=[modelled])(read)
    run = flow.run()
    assert run.outputs == {"text": "plain", "model": {"text": "plain"}, "read": "Model plain"}
    assert run[modelled] == Model(text="plain")


def test_every_step_is_a_program_below_the_workflow(fake_kernel: KernelHandle) -> None:
    run = order().run(item="kiwi_7")
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))
    rows = {row.agent: row for row in fake_kernel.ps()}
    assert set(rows) == {"order", "order/price", "order/total", "order/report"}
    assert rows["order"].program == run.program
    assert {row.parent for name, row in rows.items() if name != "order"} == {run.program}
    handed_on = [span.agent for span in fake_kernel.spans() if span.syscall == "agent.send"]
    assert sorted(handed_on) == ["order/price", "order/price", "order/total"]


def test_independent_steps_run_at_the_same_time(fake_kernel: KernelHandle) -> None:
    flow, together = Workflow("wide"), threading.Barrier(12, timeout=10)
    for number in range(12):
        flow.step(name=f"s{number}")(lambda: together.wait() >= 0)
    assert all(flow.run().outputs.values())


async def test_two_runs_at_once_do_not_mix(fake_kernel: KernelHandle) -> None:
    flow = order()
    runs = await asyncio.gather(*(flow.arun(item=f"item{number}", count=number) for number in range(8)))
    assert [run["report"] for run in runs] == [f"item{number}: {12.5 * number:g}" for number in range(8)]
    assert len({run.id for run in runs}) == 8


def test_built_objects_and_their_methods_are_steps(fake_kernel: KernelHandle) -> None:
    class Doubler:
        def __call__(self, start: int) -> int:
            return 2 * start

        async def again(self, Doubler: int) -> int:
            return 2 * Doubler

    flow = Workflow("objects")
    doubled = flow.step()(Doubler())
    again = flow.step(after=[doubled])(Doubler().again)
    assert flow.run(start=3)[again] == 12


def test_a_step_is_an_agent(fake_kernel: KernelHandle) -> None:
    flow = Workflow("named", priority="batch")

    @flow.step(priority="interactive")
    def urgent() -> str:
        scope = aios.current()
        assert scope is not None
        aios.memory.add("kept")
        return scope.agent

    @flow.step()
    async def patient() -> None:
        await aios.memory.aadd("kept too")

    assert flow.run()[urgent] == "named/urgent"
    rows = {row.agent: row.priority for row in fake_kernel.ps()}
    assert (rows["named/urgent"], rows["named/patient"]) == ("interactive", "batch")


def test_a_failing_step_ends_the_run_and_says_which(fake_kernel: KernelHandle) -> None:
    flow = Workflow("broken")

    @flow.step()
    def bad() -> int:
        raise ValueError("no such item")

    @flow.step(after=[bad])
    def never(bad: int) -> int:
        return bad

    @flow.step()
    async def endless() -> None:
        await aios.areceive(topic="never sent")

    began = time.monotonic()
    with pytest.raises(StepFailed, match=r'"bad" of the workflow "broken" failed .* ValueError: no such item') as info:
        flow.run()
    assert time.monotonic() - began < 5
    assert isinstance(info.value.__cause__, ValueError)
    assert fake_kernel.wait_for(lambda: all(row.state == "finished" for row in fake_kernel.ps()))


def test_an_error_of_the_kernel_keeps_its_fix(fake_kernel: KernelHandle) -> None:
    flow = Workflow("refused")

    @flow.step()
    def read() -> None:
        from aios_kernel.syscalls import MemorySearch, Notes

        scope = aios.current()
        assert scope is not None
        scope.call(MemorySearch(namespace="agent/somebody-else"), Notes)

    with pytest.raises(StepFailed, match="fix: ") as info:
        flow.run()
    assert isinstance(info.value.__cause__, errors.AccessDenied)


def test_what_is_no_json_is_refused(fake_kernel: KernelHandle) -> None:
    flow = Workflow("opaque")
    flow.step(name="opaque")(lambda: object())
    with pytest.raises(StepFailed, match="of the type object, cannot be written as JSON"):
        flow.run()


def test_a_value_that_does_not_fit_the_annotation_is_refused(fake_kernel: KernelHandle) -> None:
    flow = Workflow("mismatch")

    @flow.step()
    def text() -> str:
        return "many"

    @flow.step(after=[text])
    def count(text: int) -> int:
        return text

    with pytest.raises(StepFailed, match='"text" of count should be'):
        flow.run()


def test_inputs_are_checked_before_anything_runs() -> None:
    with pytest.raises(errors.InvalidRequest, match=r"needs the inputs: item"):
        order().run()
    with pytest.raises(errors.InvalidRequest, match=r"takes the inputs: colour[\s\S]*count, item"):
        order().run(item="kiwi_7", colour="green")


def declare_same_name(flow: Workflow) -> None:
    flow.step(name="price")(lambda: 1)


def declare_unknown_after(flow: Workflow) -> None:
    flow.step(name="x", after=["nothing"])(lambda: 1)


def declare_slash(flow: Workflow) -> None:
    flow.step(name="a/b")(lambda: 1)


def declare_forgotten_after(flow: Workflow) -> None:
    flow.step(name="x")(lambda price: price)


def declare_positional_only(flow: Workflow) -> None:
    def step(item: str, /) -> None: ...

    flow.step()(step)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (declare_same_name, 'has a step "price" already'),
        (declare_unknown_after, 'no step "nothing" yet'),
        (declare_slash, "cannot be the name"),
        (declare_forgotten_after, r'takes "price", which is a step that it does not wait for'),
        (declare_positional_only, "positional only"),
    ],
)
def test_wrong_declarations_are_refused(declare: Any, message: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=message):
        declare(order())


async def test_run_refuses_to_block_an_event_loop() -> None:
    with pytest.raises(errors.InvalidRequest, match=r"await flow\.arun"):
        order().run(item="kiwi_7")


def test_without_a_kernel_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KERNEL", "off")
    with pytest.raises(errors.InvalidRequest, match="AIOS_KERNEL=off"):
        order().run(item="kiwi_7")


# --- steps of other processes ---------------------------------------------------------------------------------------


def shouting(tmp_path: Path, price: float, worker: str = WORKER) -> Workflow:
    script = tmp_path / "worker.py"
    script.write_text(worker)
    flow = Workflow("loud")

    @flow.step(name="price")
    def said() -> float:
        return price

    shout = flow.remote("shout", after=["price"], command=[sys.executable, str(script)], inputs=["loud"])

    @flow.step(after=[shout])
    def done(shout: dict[str, str]) -> str:
        return shout["text"] + "!"

    return flow


def test_a_step_in_a_process_of_its_own(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    run = shouting(tmp_path, 12.5).run(loud=True)
    assert run.outputs == {"price": 12.5, "shout": {"text": "PRICE 12.5"}, "done": "PRICE 12.5!"}
    rows = {row.agent: row for row in fake_kernel.ps()}
    assert rows["loud/shout"].parent == run.program
    assert rows["loud/shout"].memory_calls == 1


def test_a_remote_step_that_raises(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r'step "shout" .* ValueError: negative'):
        shouting(tmp_path, -1.0).run(loud=True)


def test_a_worker_that_dies(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="its worker ended with status 3"):
        shouting(tmp_path, 5000.0).run(loud=True)


def test_a_worker_that_cannot_start(fake_kernel: KernelHandle) -> None:
    flow = Workflow("lost")
    flow.remote("shout", command=["/nowhere/python"])
    with pytest.raises(StepFailed, match="/nowhere/python"):
        flow.run()


def test_a_failure_elsewhere_ends_the_worker(fake_kernel: KernelHandle, tmp_path: Path) -> None:
    marker = tmp_path / "ended"
    worker = f"""
import atexit, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
atexit.register(pathlib.Path({str(marker)!r}).touch)
import aios_adapters as aios
aios.workflow.serve(lambda price, loud: time.sleep(60), "shout")
"""
    flow = shouting(tmp_path, 1.0, worker)

    @flow.step()
    def bad() -> None:
        fake_kernel.wait_for(lambda: any(row.agent == "loud/shout" for row in fake_kernel.ps()))
        raise ValueError("enough")

    with pytest.raises(StepFailed, match="enough"):
        flow.run(loud=True)
    assert marker.exists()


async def test_a_worker_that_runs_on_its_own_serves_many_runs(fake_kernel: KernelHandle) -> None:
    def check(total: float) -> str:
        if total < 0:
            raise ValueError("negative")
        return f"checked {total:g}"

    flow = Workflow("checked")
    flow.step(name="total")(lambda start: start * 2)
    flow.remote("checker", after=["total"], timeout_s=10)
    worker = asyncio.create_task(aios.workflow.aserve(check, "checker"))
    try:
        assert (await flow.arun(start=1))["checker"] == "checked 2"
        with pytest.raises(StepFailed, match="negative"):
            await flow.arun(start=-1)
        assert (await flow.arun(start=3))["checker"] == "checked 6"
    finally:
        worker.cancel()


async def test_nobody_serving_is_a_timeout(fake_kernel: KernelHandle) -> None:
    flow = Workflow("alone")
    flow.remote("checker", timeout_s=0.05)
    with pytest.raises(StepFailed, match=r'DeadlineExceeded: a message from anyone on "workflow/\w+/checker"'):
        await flow.arun()
