"""Workflows: named steps, each an agent of any framework, that hand their work on through the kernel.

    flow = aios.workflow.Workflow("order")

    @flow.step()
    def price(item: str) -> float: ...                        # an agent of one framework

    @flow.step(after=[price])
    async def total(price: float, count: int) -> float: ...   # of another

    run = flow.run(item="kiwi_7", count=4)
    print(run[total])

A parameter takes the output of the step of its name, else the run's input of its name. Outputs travel as messages
between mailboxes of the kernel, as JSON, so that a step may live in another process and environment: declare it with
`flow.remote(...)` and let a script there call `serve`. All steps run at once and wait for their inputs.

Every step has a name, every run an id, and what crosses between steps is JSON: what a journal needs to resume a run.
"""

from aios_adapters.workflow._failure import StepFailed
from aios_adapters.workflow._flow import Workflow
from aios_adapters.workflow._run import Run
from aios_adapters.workflow._step import Step
from aios_adapters.workflow._worker import aserve, serve

__all__ = ["Run", "Step", "StepFailed", "Workflow", "aserve", "serve"]
