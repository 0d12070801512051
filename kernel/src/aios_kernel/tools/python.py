"""Python functions of the tools file."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aios_kernel.config import Config
from aios_kernel.errors import ConfigError
from aios_kernel.syscalls import ToolSpec
from aios_kernel.tools.file import PythonEntry, ToolsFile
from aios_kernel.tools.hosted import HostedTool, Launch
from aios_kernel.tools.isolation.reference import Reference
from aios_kernel.tools.source import FixedTools

IDEMPOTENCY_KEY = "idempotency_key"
"""The keyword by which tools whose effects are `keyed` or `queryable` get the key of a call."""


def python_tools(config: Config, file: ToolsFile) -> FixedTools:
    """The tools of `[python]`. Raises ConfigError for a function that cannot be imported."""
    return FixedTools(_hosted(name, entry) for name, entry in file.python.items())


def _hosted(name: str, entry: PythonEntry) -> HostedTool:
    if entry.isolation != "trusted" and not entry.parameters:
        raise ConfigError(
            f"python.{name}: a function above the level trusted is not imported by the kernel",
            fix="give its `parameters`, a JSON schema, in the tools file",
        )
    run = _found(entry, entry.function, f"python.{name}")
    return HostedTool(
        spec=ToolSpec(
            name=name,
            description=entry.description or ("" if isinstance(run, Reference) else _summary(run)),
            parameters=entry.parameters or _schema(name, run),
        ),
        run=run,
        launch=functools.partial(_launch, entry.function) if entry.isolation == "trusted" else None,
        isolation=entry.isolation,
        timeout_s=entry.timeout_s,
        expected_s=entry.expected_s,
        max_running=entry.max_running,
        exclusive=entry.exclusive,
        retry=entry.retry,
        effects=entry.effects,
        status=_found(entry, entry.status, f"python.{name}.status") if entry.status else None,
        untrusted=entry.untrusted,
        confinement=entry.confinement,
    )


def _found(entry: PythonEntry, reference: str, key: str) -> Callable[..., Any]:
    """A function to call here, or the name of one that a process of its own imports."""
    return imported(reference, key) if entry.isolation == "trusted" else Reference(reference)


def imported(reference: str, key: str) -> Callable[..., Any]:
    """The function of `package.module:function`. Raises ConfigError, which names the key of the tools file."""
    module, _, path = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module does while it is imported
        raise ConfigError(
            f"{key}: {reference} cannot be imported: {type(error).__name__}: {error}",
            fix="install its package where the kernel runs (AIOS_PYTHON), or correct the name in the tools file",
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}: {reference} is no function", fix="name a function in the tools file")
    return found


def _summary(run: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(run) or "").partition("\n\n")[0].split())


def _schema(name: str, run: Callable[..., Any]) -> dict[str, Any]:
    """A JSON schema of a function's parameters; those without an annotation take anything."""
    try:
        signature = inspect.signature(run, eval_str=True)
        properties = {
            parameter.name: _type_schema(parameter.annotation)
            for parameter in _named(signature.parameters)
            if parameter.name != IDEMPOTENCY_KEY
        }
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(
            f"python.{name}: no schema can be made of the function's signature: {error}",
            fix="give `parameters`, a JSON schema, in the tools file",
        ) from error
    required = [
        parameter.name
        for parameter in _named(signature.parameters)
        if parameter.default is inspect.Parameter.empty and parameter.name in properties
    ]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _named(parameters: Mapping[str, inspect.Parameter]) -> list[inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter for parameter in parameters.values() if parameter.kind not in variadic]


def _type_schema(annotation: Any) -> dict[str, Any]:
    if annotation is inspect.Parameter.empty:
        return {}
    schema = msgspec.json.schema(annotation)
    if "$defs" in schema:
        raise TypeError(f"{annotation} is no plain type")
    return schema


def _launch(function: str, arguments: Mapping[str, Any]) -> Launch:
    """A process of the kernel's interpreter that runs one call."""
    call = msgspec.json.encode({"function": function, "arguments": arguments}).decode()
    path = os.pathsep.join(part for part in sys.path if part)
    argv = [sys.executable, "-m", "aios_kernel.tools.python_call"]
    return Launch(argv=argv, env=os.environ | {"PYTHONPATH": path}, stdin=call)
