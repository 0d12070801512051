"""One tree for every error that crosses the kernel's border.

    AiosError
    ├── KernelUnavailable      no kernel answers, or it went away
    │   ├── KernelLocked       another kernel owns this data directory
    │   └── HandshakeRefused   the two sides speak different versions
    ├── AuthError              wrong token, or somebody else's program
    ├── ProtocolError          a frame that cannot be read
    ├── ConfigError            aios.toml, AIOS_* or a flag is wrong
    ├── AdapterError           a framework hook could not be installed
    ├── InvalidRequest         the syscall's arguments cannot be served
    │   ├── UnknownModel
    │   ├── ContextTooLong     prompt and answer exceed the model's window
    │   ├── InvalidSchema      a JSON schema that cannot be compiled
    │   └── Unsupported        understood, but not offered here
    ├── NotFound
    ├── AccessDenied
    ├── Busy                   try again after `retry_after_s`
    ├── BudgetExceeded         an agent or a group is over its total of tokens
    ├── QuotaExceeded          an owner's files have all the bytes that they may have
    ├── DeadlineExceeded
    ├── Cancelled
    ├── ToolError
    │   ├── ToolTimeout
    │   ├── ToolNotStarted     nothing of it ran: the call may be made again
    │   └── EffectUnknown      it may have run, and is not run again
    ├── OutOfMemory            no KV blocks left for this context
    ├── EngineError            the forward pass failed
    │   └── EngineUnavailable  the model server does not answer, or cannot now
    │   └── SnapshotError      a snapshot that cannot be written, read or continued here
    └── InternalError          a fault of ours; the log has the traceback

Every message says what happened, which agent and syscall, and the command that mends it.
"""

from __future__ import annotations

from typing import ClassVar


class AiosError(Exception):
    """Base of all errors raised by the kernel and its clients.

    Attributes:
        code: stable name that crosses the wire.
        agent: the agent whose syscall failed, if one did.
        syscall: the failed syscall, such as `llm.chat`.
        fix: a command or an edit that mends it.
        retry_after_s: seconds after which the same call may succeed.
    """

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        agent: str | None = None,
        syscall: str | None = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.agent = agent
        self.syscall = syscall
        self.fix = fix
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        lines = [self.message]
        if self.agent or self.syscall:
            who = f'agent "{self.agent}"' if self.agent else "a client"
            what = f" called {self.syscall}" if self.syscall else ""
            lines.append(f"  {who}{what}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def with_caller(self, agent: str | None, syscall: str | None) -> AiosError:
        """Name the agent and the syscall unless they are named already."""
        self.agent = self.agent or agent
        self.syscall = self.syscall or syscall
        return self


class KernelUnavailable(AiosError):
    """No kernel answers at the address, or it closed the connection."""

    code = "kernel_unavailable"


class KernelLocked(KernelUnavailable):
    """Another kernel owns the data directory."""

    code = "kernel_locked"


class HandshakeRefused(KernelUnavailable):
    """Client and kernel speak different versions of the ABI."""

    code = "handshake_refused"


class AuthError(AiosError):
    """The token is wrong, or the program belongs to somebody else."""

    code = "auth"


class ProtocolError(AiosError):
    """A frame was too large, cut short or not of the ABI."""

    code = "protocol"


class ConfigError(AiosError):
    """A configuration key or value is wrong."""

    code = "config"


class AdapterError(AiosError):
    """A framework's hook could not be installed."""

    code = "adapter"


class InvalidRequest(AiosError):
    """The arguments of the syscall cannot be served."""

    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """The model's name is neither loaded nor mapped."""

    code = "unknown_model"


class ContextTooLong(InvalidRequest):
    """The prompt does not fit the model's window."""

    code = "context_too_long"


class InvalidSchema(InvalidRequest):
    """The JSON schema cannot be compiled to a grammar."""

    code = "invalid_schema"


class Unsupported(InvalidRequest):
    """The request is understood but not offered by this kernel or engine."""

    code = "unsupported"


class NotFound(AiosError):
    """The named note, file, version, agent or tool does not exist."""

    code = "not_found"


class AccessDenied(AiosError):
    """The agent holds no right for that resource."""

    code = "access_denied"


class Busy(AiosError):
    """A queue is full; `retry_after_s` says when to come back."""

    code = "busy"


class BudgetExceeded(AiosError):
    """An agent or a group has used up the tokens that it may use in all."""

    code = "budget_exceeded"


class QuotaExceeded(AiosError):
    """The files of an agent or a group, all versions together, would have more bytes than they may."""

    code = "quota_exceeded"


class DeadlineExceeded(AiosError):
    """The syscall's deadline passed before it ended."""

    code = "deadline_exceeded"


class Cancelled(AiosError):
    """The syscall was cancelled by its caller, a kill or a shutdown."""

    code = "cancelled"


class ToolError(AiosError):
    """A tool failed or was refused."""

    code = "tool"


class ToolTimeout(ToolError):
    """A tool did not end within its time limit."""

    code = "tool_timeout"


class ToolNotStarted(ToolError):
    """Nothing of the tool ran: the same call may be made again, whatever its effects."""

    code = "tool_not_started"


class EffectUnknown(ToolError):
    """An earlier attempt of this call may have had its effect, and another could have it twice."""

    code = "effect_unknown"


class OutOfMemory(AiosError):
    """The KV pool cannot hold this context."""

    code = "out_of_memory"


class EngineError(AiosError):
    """The engine failed while it computed."""

    code = "engine"


class SnapshotError(EngineError):
    """A snapshot cannot be written or read, or is of another engine."""

    code = "snapshot"


class EngineUnavailable(EngineError):
    """The model server behind the engine is down, silent or overloaded."""

    code = "engine_unavailable"


class InternalError(AiosError):
    """A fault of the kernel itself."""

    code = "internal"


def _tree(root: type[AiosError]) -> dict[str, type[AiosError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


_BY_CODE = _tree(AiosError)


def from_code(
    code: str,
    message: str,
    *,
    agent: str | None = None,
    syscall: str | None = None,
    fix: str | None = None,
    retry_after_s: float | None = None,
) -> AiosError:
    """Rebuild an error that crossed the wire; an unknown code gives the base class."""
    kind = _BY_CODE.get(code, AiosError)
    return kind(message, agent=agent, syscall=syscall, fix=fix, retry_after_s=retry_after_s)
