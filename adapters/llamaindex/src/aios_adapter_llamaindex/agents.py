"""Identity: which agent of the framework makes a call.

A single agent is on while its `run` starts the workflow, whose tasks copy the context. In an `AgentWorkflow` the agent
changes from step to step, and each step knows it: by its event, or by the run's state.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.agent.workflow.base_agent import DEFAULT_AGENT_NAME, BaseWorkflowAgent
from llama_index.core.agent.workflow.multi_agent_workflow import AgentWorkflow
from llama_index.core.agent.workflow.workflow_events import AgentInput, AgentOutput, AgentSetup
from llama_index.core.workflow import Context

from aios_adapter_llamaindex.shelf import FRAMEWORK
from aios_adapters import Scope
from aios_adapters.patching import Patcher, Wrapper


def install(patcher: Patcher) -> None:
    """Name the agents. The steps' wrappers carry over `_step_config`, by which the workflow finds them."""
    patcher.leaves(BaseWorkflowAgent, {"run": _run}, late="__pydantic_init_subclass__")
    steps: dict[str, Wrapper] = dict.fromkeys(
        ("init_run", "run_agent_step", "parse_agent_output", "call_tool", "aggregate_tool_results"), _step
    )
    patcher.leaves(AgentWorkflow, steps)


def _run(scope: Scope, original: Any, agent: BaseWorkflowAgent, /, *args: Any, **kwargs: Any) -> Any:
    with _child(scope, agent.name).on():
        return original(agent, *args, **kwargs)


async def _step(scope: Scope, original: Any, workflow: AgentWorkflow, /, *args: Any, **kwargs: Any) -> Any:
    name = await _current_agent(workflow, [*args, *kwargs.values()])
    with _child(scope, name).on():
        return await original(workflow, *args, **kwargs)


async def _current_agent(workflow: AgentWorkflow, arguments: list[Any]) -> str:
    """The agent that a step works for: its event names it, or the run's state does."""
    for argument in arguments:
        if isinstance(argument, AgentInput | AgentSetup | AgentOutput):
            return argument.current_agent_name
    for argument in arguments:
        if isinstance(argument, Context):
            return await argument.store.get("current_agent_name", default=workflow.root_agent)
    return workflow.root_agent


def _child(scope: Scope, name: str) -> Scope:
    """The agent's scope; an agent that the user did not name is the one that was decorated."""
    return scope.child(None if name == DEFAULT_AGENT_NAME else name, FRAMEWORK)
