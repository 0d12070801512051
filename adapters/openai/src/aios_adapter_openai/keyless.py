"""Clients without an API key: the one patch that also acts outside of scopes.

Agents are often built before any scope is on (a module-level `client = OpenAI()`), and the kernel needs no key. So a
constructor that finds no credentials succeeds, and what it would have raised is raised by the first request that would
go to the network. Clients with credentials, and every other error, are untouched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import openai

from aios_adapters._passthrough import passes_through
from aios_adapters.patching import Patcher
from aios_kernel.errors import AdapterError

_CLIENTS = {"openai._client": ("OpenAI", "AsyncOpenAI"), "openai.lib.azure": ("AzureOpenAI", "AsyncAzureOpenAI")}


def allow_without_key(patcher: Patcher, module: str) -> None:
    """Patch the constructors of a module's clients. Raises AdapterError when they have changed."""
    for name in _CLIENTS[module]:
        client = getattr(sys.modules[module], name, None)
        if client is None or "_enforce_credentials" not in inspect.signature(client.__init__).parameters:
            raise AdapterError(
                f"{module}.{name} no longer has the parameter _enforce_credentials",
                fix="aios doctor shows the tested versions of openai; install one of them",
            )
        patcher.replace(client, "__init__", _lenient(client.__init__))


def _lenient(construct: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(construct)
    def __init__(client: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(client, *args, **kwargs)
        except openai.OpenAIError as error:
            if not kwargs.get("_enforce_credentials", True) or passes_through():
                raise
            try:
                construct(client, *args, **{**kwargs, "_enforce_credentials": False})
            except openai.OpenAIError:
                raise error from None  # it was not about credentials
            _refuse_to_send(client, error)

    # Frameworks ask which arguments there are (AutoGen, by `inspect.getfullargspec`, which does not follow wrappers).
    __init__.__dict__["__signature__"] = inspect.signature(construct)
    return __init__


def _refuse_to_send(client: Any, error: openai.OpenAIError) -> None:
    """Let the client's requests raise what its constructor would have, until it is given a key."""
    prepare, no_key = client._prepare_options, client.api_key

    def check() -> None:
        if client.api_key == no_key:
            raise type(error)(*error.args)

    if inspect.iscoroutinefunction(prepare):

        async def prepare_later(options: Any) -> Any:
            check()
            return await prepare(options)

        client._prepare_options = prepare_later
        return

    def prepare_now(options: Any) -> Any:
        check()
        return prepare(options)

    client._prepare_options = prepare_now
