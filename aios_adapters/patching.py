"""Reversible class-level patches that act only inside a decorated scope.

Outside a scope a patched method calls the original and costs one ContextVar read. The wrapped signature, the kind of
function (plain, coroutine, generator, async generator) and the docstring stay.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Literal, TypeAlias

from aios_adapters import _passthrough
from aios_adapters._scope import Scope, current
from aios_kernel.errors import AdapterError

Wrapper: TypeAlias = Callable[..., Any]
"""`wrapper(scope, original, self, *args, **kwargs)`; of the same kind of function as the method it replaces
(for a coroutine function a coroutine function, for an async generator an async generator, ...)."""

Kind: TypeAlias = Literal["around", "model", "detail"]
"""What a wrapper does with the original, and so what happens instead of it under `AIOS_KERNEL=passthrough`.

`around`: the wrapper lets the original run when the scope's options say so (tools, memory that is `mediated`, names);
it stays. `model`: the kernel answers in the original's place; under passthrough a short chat passes the kernel and the
original runs. `detail`: makes sense only where the kernel answers; under passthrough the original runs alone.
"""

_Entered: TypeAlias = Callable[[], Scope | None]
DIRECT = "__aios_direct__"
"""A true class attribute of this name marks a class that goes to the kernel by itself: it is never patched."""
_MISSING = object()


class Patcher:
    """The patches of one adapter, kept so that they can be undone in reverse order."""

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter
        self.asked: list[tuple[Any, str]] = []
        """Owners and names of the methods that the adapter asked for, their subclasses' not counted."""
        self._undo: list[tuple[Any, str, Any]] = []

    def method(self, owner: Any, name: str, wrapper: Wrapper, *, kind: Kind = "around") -> None:
        """Reroute `owner.name` (a class's method or a module's function) to `wrapper` inside a scope."""
        self.asked.append((owner, name))
        original = inspect.getattr_static(owner, name, _MISSING)
        if original is _MISSING:
            raise self._moved(owner, name)
        self.replace(owner, name, rerouted(original, wrapper, self.adapter, kind))

    def leaves(
        self,
        base: type,
        wrappers: Mapping[str, Wrapper],
        *,
        late: str = "__init_subclass__",
        kind: Kind = "around",
        also: Mapping[str, Wrapper] | None = None,
    ) -> None:
        """Reroute the named methods on `base` and on every subclass that defines them, present and future.

        `late` is the hook that sees new subclasses: `__pydantic_init_subclass__` for pydantic models. `also` are
        methods that only some subclasses have; `base` need not know them.
        """
        for name in wrappers:
            self.asked.append((base, name))
            if not hasattr(base, name):
                raise self._moved(base, name)
        every = {**wrappers, **(also or {})}
        for cls in _family(base):
            self._own_methods(cls, every, kind)
        self._watch(base, every, late, kind)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute and remember what was there."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)
        self._undo.append((owner, name, before))

    def undo(self) -> None:
        """Take every patch back."""
        while self._undo:
            owner, name, before = self._undo.pop()
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _own_methods(self, cls: type, wrappers: Mapping[str, Wrapper], kind: Kind) -> None:
        if getattr(cls, DIRECT, False):
            return
        for name, wrapper in wrappers.items():
            original = vars(cls).get(name, _MISSING)
            if original is _MISSING or getattr(original, "__isabstractmethod__", False) or _is_ours(original):
                continue
            self.replace(cls, name, rerouted(original, wrapper, self.adapter, kind))

    def _watch(self, base: type, wrappers: Mapping[str, Wrapper], late: str, kind: Kind) -> None:
        before = vars(base).get(late, _MISSING)

        def hook(cls: type, **kwargs: Any) -> None:
            if before is _MISSING:
                getattr(super(base, cls), late)(**kwargs)
            else:
                before.__get__(None, cls)(**kwargs)
            self._own_methods(cls, wrappers, kind)

        self.replace(base, late, classmethod(hook))

    def _moved(self, owner: Any, name: str) -> AdapterError:
        where = f"{getattr(owner, '__module__', '')}.{getattr(owner, '__qualname__', owner)}".lstrip(".")
        return AdapterError(
            f"the {self.adapter} adapter cannot hook {where}.{name}: there is no such name in the installed version",
            fix="aios doctor shows the command that installs a tested version; AIOS_KERNEL=off runs without the kernel",
        )


def rerouted(original: Any, wrapper: Wrapper, framework: str = "", kind: Kind = "around") -> Any:
    """`original` outside a scope, `wrapper(scope, original, ...)` inside one.

    `framework` names a scope that does not know its framework yet.
    """
    if isinstance(original, staticmethod | classmethod):
        return type(original)(rerouted(original.__func__, wrapper, framework, kind))
    if kind != "around":
        wrapper = _unless_passing(wrapper, _passthrough.wrapper_for(original, counted=kind == "model"))

    def entered() -> Scope | None:
        scope = current()
        if scope is not None and not scope.framework:
            scope.framework = framework
        return scope

    patched = _shaped(original, wrapper, entered)
    functools.update_wrapper(patched, original)
    patched.__aios_original__ = original
    return patched


def _unless_passing(wrapper: Wrapper, through: Wrapper) -> Wrapper:
    def chosen(scope: Scope, /, *args: Any, **kwargs: Any) -> Any:
        return (through if scope.passthrough else wrapper)(scope, *args, **kwargs)

    return chosen


def _is_ours(function: Any) -> bool:
    return hasattr(getattr(function, "__func__", function), "__aios_original__")


def _shaped(original: Callable[..., Any], wrapper: Wrapper, entered: _Entered) -> Any:
    if inspect.isasyncgenfunction(original):
        return _async_generator(original, wrapper, entered)
    if inspect.iscoroutinefunction(original):
        return _coroutine(original, wrapper, entered)
    if inspect.isgeneratorfunction(original):
        return _generator(original, wrapper, entered)

    def patched(*args: Any, **kwargs: Any) -> Any:
        scope = entered()
        return original(*args, **kwargs) if scope is None else wrapper(scope, original, *args, **kwargs)

    return patched


def _coroutine(original: Callable[..., Any], wrapper: Wrapper, entered: _Entered) -> Any:
    async def patched(*args: Any, **kwargs: Any) -> Any:
        scope = entered()
        if scope is None:
            return await original(*args, **kwargs)
        return await wrapper(scope, original, *args, **kwargs)

    return patched


def _generator(original: Callable[..., Any], wrapper: Wrapper, entered: _Entered) -> Any:
    def patched(*args: Any, **kwargs: Any) -> Any:
        scope = entered()
        return (yield from (original(*args, **kwargs) if scope is None else wrapper(scope, original, *args, **kwargs)))

    return patched


def _async_generator(original: Callable[..., Any], wrapper: Wrapper, entered: _Entered) -> Any:
    async def patched(*args: Any, **kwargs: Any) -> Any:
        scope = entered()
        source = original(*args, **kwargs) if scope is None else wrapper(scope, original, *args, **kwargs)
        async with aclosing(source) as items:
            async for item in items:
                yield item

    return patched


def _family(base: type) -> list[type]:
    found = [base]
    for cls in found:
        found.extend(child for child in cls.__subclasses__() if child not in found)
    return found
