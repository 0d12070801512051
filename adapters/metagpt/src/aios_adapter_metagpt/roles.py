"""Roles: each is an agent of its own below the decorated one, and the kernel keeps its memory."""

from __future__ import annotations

from typing import Any

from aios_adapter_metagpt.memory import Keepers
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.errors import AiosError


def install(patcher: Patcher) -> None:
    """Name the runs of roles, present and future, and keep their memories."""
    from metagpt.memory import Memory
    from metagpt.roles.role import Role

    roles = Roles(Keepers())
    steps = {"run": roles.run, "think": roles.step, "act": roles.step, "get_memories": roles.get_memories}
    patcher.leaves(Role, steps, late="__pydantic_init_subclass__")
    for name, wrapper in roles.keepers.wrappers().items():
        patcher.method(Memory, name, wrapper)


class Roles:
    """The wrappers of a role's methods."""

    def __init__(self, keepers: Keepers) -> None:
        self.keepers = keepers

    async def run(self, scope: Scope, original: Any, role: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`Role.run`. MetaGPT turns every exception into a traceback's text; the kernel's errors come out as such."""
        try:
            return await self.step(scope, original, role, *args, **kwargs)
        except AiosError:
            raise
        except Exception as error:
            cause = _kernel_error(error)
            if cause is None:
                raise
            raise cause from error

    async def step(self, scope: Scope, original: Any, role: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`Role.think` and `Role.act`, with the role's scope on and its memory at hand."""
        with scope.child(_name(role), "metagpt").on() as own:
            await self.keepers.aopen(own, role)
            return await original(role, *args, **kwargs)

    def get_memories(self, scope: Scope, original: Any, role: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`Role.get_memories`, which may come before the role's first run."""
        with scope.child(_name(role), "metagpt").on() as own:
            self.keepers.open(own, role)
            return original(role, *args, **kwargs)


def _name(role: Any) -> str:
    """The role's name as MetaGPT logs it: `Carl(Calculator)`."""
    return f"{role.name}({role.profile})" if role.profile else role.name or type(role).__name__


def _kernel_error(error: BaseException) -> AiosError | None:
    """The kernel's error that an exception was raised for, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, AiosError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
