"""Messages between agents: the kernel keeps a mailbox for every agent's name, whatever framework or process it is in.

A message to a name waits there until an agent of that name takes it, so that the receiver need not run yet. The async
forms (`asend`, `areceive`, `await_end`) do the same without blocking the event loop.
"""

from __future__ import annotations

from aios_adapters._scope import required
from aios_kernel.syscalls import AgentReceive, AgentSend, AgentWait, Mail, Ok, ProgramInfo


def send(to: str, body: str, topic: str = "") -> None:
    """Put a message into a mailbox.

    Args:
        to: an agent's full name (`team/critic` for one inside another), or the id of a running program.
        body: the text, at most 16 MiB.
        topic: lets the receiver choose.
    """
    required("send").call(AgentSend(to=to, body=body, topic=topic), Ok)


async def asend(to: str, body: str, topic: str = "") -> None:
    """Like `send`."""
    await required("asend").acall(AgentSend(to=to, body=body, topic=topic), Ok)


def receive(*, topic: str | None = None, sender: str | None = None, timeout_s: float | None = None) -> Mail:
    """Take the oldest message of the calling agent's mailbox, waiting for one.

    Args:
        topic: only a message on this topic.
        sender: only a message of this agent, by its full name.
        timeout_s: raise DeadlineExceeded after so many seconds; None waits on.
    """
    return required("receive").call(AgentReceive(topic=topic, sender=sender, timeout_s=timeout_s), Mail)


async def areceive(*, topic: str | None = None, sender: str | None = None, timeout_s: float | None = None) -> Mail:
    """Like `receive`; cancelling the task loses no message."""
    return await required("areceive").acall(AgentReceive(topic=topic, sender=sender, timeout_s=timeout_s), Mail)


def wait(program: str, *, timeout_s: float | None = None) -> ProgramInfo:
    """Wait until a program (a run of an agent, by `scope.program`) has ended; gives its row of the process table."""
    return required("wait").call(AgentWait(program=program, timeout_s=timeout_s), ProgramInfo)


async def await_end(program: str, *, timeout_s: float | None = None) -> ProgramInfo:
    """Like `wait`."""
    return await required("await_end").acall(AgentWait(program=program, timeout_s=timeout_s), ProgramInfo)
