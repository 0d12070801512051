"""The ABI: every message that crosses between an agent's process and the kernel.

A frame is a big-endian u32 length and that many bytes of msgpack. The client sends `Hello` once, then `Request`,
`Cancel` and nothing else; the kernel answers `Welcome`, then `Event` frames: any number of `LlmDelta`, and for every
request exactly one `Done` or `Failed`. Adding a field with a default keeps the version; anything else raises it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Union

import msgspec

ABI_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024 * 1024

Priority: TypeAlias = Literal["interactive", "normal", "batch"]
Right: TypeAlias = Literal["read", "write", "call", "use", "send", "spawn"]
"""What may be done: `read` and `write` spaces and jobs, `call` tools, `use` models, `send` messages, `spawn` agents."""
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
WindowStrategy: TypeAlias = Literal["refuse", "drop_oldest_turns", "summarise"]
"""What becomes of a conversation that outgrows the model's window."""
JobState: TypeAlias = Literal["queued", "running", "done", "failed", "cancelled"]
ProgramState: TypeAlias = Literal["idle", "ready", "running", "tool", "message", "finished"]


class _Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of everything on the wire; unknown fields of a newer peer are ignored."""


# --- language model -------------------------------------------------------------------------------------------------


class ToolCall(_Message, frozen=True):
    """A tool call as the model wrote it; `arguments` is JSON text, not checked yet."""

    id: str
    name: str
    arguments: str


class Message(_Message, frozen=True):
    """One turn of a chat. `tool_call_id` and `name` belong to the role `tool`."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    name: str | None = None


class ToolSpec(_Message, frozen=True):
    """A tool offered to the model; `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Sampling(_Message, frozen=True):
    """How to choose tokens; None means the model's own default.

    `min_p` cuts off tokens less likely than this share of the likeliest; the presence and frequency penalties are
    OpenAI's (on the answer), the repetition penalty is transformers' (on prompt and answer, 1: none); `logit_bias` adds
    to the logits of token ids. `n` answers are drawn of one prompt: the others stand in `LlmResult.others`.
    `prompt_logprobs` asks for the log-probabilities of the prompt's tokens and of so many alternatives to each.

    `forced` (evals only) is the answer's text: every token is computed, the given text comes out, and
    `LlmResult.argmax` tells the model's own greedy choice at each of its positions.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: list[str] = []
    max_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    forced: str | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    n: int = 1
    prompt_logprobs: int | None = None


class LlmChat(_Message, frozen=True, tag="llm.chat"):
    """Ask the model for the next turn.

    `tool_choice` is `auto`, `none`, `required` or a tool's name. At most one of these holds the answer's text:
    `schema`, a JSON schema that it must satisfy (`{}`: any JSON object), `regex`, which it must match as a whole, or
    `choice`, of which it is one string. With `stream` the answer arrives as `LlmDelta` events before its `LlmResult`.
    `window` overrides what is declared for the agent: its program's, or the kernel's `window`. `lora` names an adapter
    of the model, as `model` may too (which comes first); an engine that serves none refuses it.
    """

    messages: list[Message]
    tools: list[ToolSpec] = []
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    schema: dict[str, Any] | None = None
    sampling: Sampling = Sampling()
    model: str | None = None
    stream: bool = False
    regex: str | None = None
    choice: list[str] = []
    window: WindowStrategy | None = None
    lora: str | None = None


class LlmEmbed(_Message, frozen=True, tag="llm.embed"):
    """Embed texts with the kernel's embedder, or with the served model if `model` names it; gives `Embeddings`."""

    texts: list[str]
    model: str | None = None


class TokenLogprob(_Message, frozen=True):
    """Log-probability of one emitted token and of the `top` alternatives at its place."""

    token: str
    logprob: float
    top: list[tuple[str, float]] = []


class Usage(_Message, frozen=True):
    """Tokens of one call: prompt, of these taken from the prefix cache, and generated."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class WindowCut(_Message, frozen=True):
    """What was left out of a conversation that outgrew the window; tokens are of the messages' text alone.

    `summary_tokens` is the length of the summary in their place; its own calls are accounted to the program apart.
    """

    strategy: WindowStrategy
    dropped_messages: int
    dropped_tokens: int
    summary_tokens: int = 0


class LlmDelta(_Message, frozen=True, tag="llm.delta"):
    """A piece of a streamed answer: text, or tool calls that are complete. `index` tells which of `n` answers."""

    text: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []
    index: int = 0


class LlmResult(_Message, frozen=True, tag="llm.result"):
    """The whole answer. `text` excludes the tool calls; `argmax` (token ids) is set for forced decoding.

    `prompt_logprobs` has no entry for the first token. `window` says what was left out of the prompt. Of `n` answers
    this is the first; `others` has the rest, and the usage here counts them all: the prompt once, their tokens
    together.
    """

    model: str
    text: str = ""
    tool_calls: list[ToolCall] = []
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    logprobs: list[TokenLogprob] = []
    argmax: list[int] = []
    prompt_logprobs: list[TokenLogprob] = []
    others: list[LlmResult] = []
    window: WindowCut | None = None


class Embeddings(_Message, frozen=True, tag="llm.embeddings"):
    """One vector a text, all of one length."""

    vectors: list[list[float]]
    model: str
    usage: Usage = Usage()


# --- tools ----------------------------------------------------------------------------------------------------------


class ToolBegin(_Message, frozen=True, tag="tool.begin"):
    """Ask leave to run a tool in the agent's own process and mark the program as paused on it; gives `ToolGrant`.

    `expected_s` is how long the tool says it takes, if it does; the scheduler learns from the calls otherwise.
    `max_running` calls of that name (of this principal) may run at a time, and one of the group `exclusive`; leave is
    given when there is a place. What the tools file says of the tool comes first. The wait counts in `timeout_s`.
    """

    name: str
    arguments: str = "{}"
    call_id: str | None = None
    timeout_s: float | None = None
    expected_s: float | None = None
    max_running: int | None = None
    exclusive: str | None = None


class ToolEnd(_Message, frozen=True, tag="tool.end"):
    """Report how a granted tool call ended."""

    grant: str
    ok: bool = True
    error: str | None = None
    result_bytes: int = 0


class ToolInvoke(_Message, frozen=True, tag="tool.call"):
    """Run a tool that the kernel hosts; gives `ToolOutput`.

    `key` makes two requests one call: for a day, a second one of the same agent is answered with what became of the
    first, also by another kernel of the same data directory. Clients make one up for every call and send it again when
    they repeat a request whose end they have not heard. Tools that are idempotent are simply run again.
    """

    name: str
    arguments: str = "{}"
    timeout_s: float | None = None
    key: str = ""


class ToolList(_Message, frozen=True, tag="tool.list"):
    """List the kernel's tools; gives `Tools`."""


class ToolSubmit(_Message, frozen=True, tag="tool.submit"):
    """Begin a hosted tool as a long job, a process of its own that outlives the kernel; gives its `ToolJob`.

    `key` makes two requests one job, as in `ToolInvoke`; `timeout_s` is from its start on, None: what the tool says, or
    a day.
    """

    name: str
    arguments: str = "{}"
    timeout_s: float | None = None
    key: str = ""


class ToolWait(_Message, frozen=True, tag="tool.wait"):
    """Wait for a job, the program being paused on its tool meanwhile; gives its `ToolJob`, with the result at its end.

    With `position` the answer comes as soon as there are lines that the job printed from there on, or it has ended.
    After `timeout_s` the answer tells how far it is.
    """

    job: str
    timeout_s: float | None = None
    position: int | None = None


class ToolCancel(_Message, frozen=True, tag="tool.cancel"):
    """End a job that the caller may write; gives its `ToolJob` when it has ended, without the result."""

    job: str


class ToolJobs(_Message, frozen=True, tag="tool.jobs"):
    """List the jobs that the caller may see, oldest first; gives `JobList`. With `ended` those of the last week, too.

    They are its agent's, those of agents that ran below it, and those of agents that let it read `job/<agent>`. A
    caller that names no agent (a terminal) sees all of its principal.
    """

    ended: bool = False


class ToolJob(_Message, frozen=True, tag="tool.job"):
    """A long job. Times are seconds since 1970.

    `content` is what it printed, once it is done, and `code` and `error` say why it is not; `lines` were asked for by
    `ToolWait.position`, and `position` is where the next begin.
    """

    job: str
    tool: str
    state: JobState
    agent: str
    program: str
    submitted_s: float
    started_s: float | None = None
    ended_s: float | None = None
    content: str = ""
    code: str = ""
    error: str = ""
    lines: list[str] = []
    position: int = 0
    untrusted: bool = False


class JobList(_Message, frozen=True, tag="tool.job_list"):
    """Long jobs."""

    jobs: list[ToolJob]


class ToolGrant(_Message, frozen=True, tag="tool.grant"):
    """Leave to run a tool until `timeout_s` seconds have passed; `run_s` is the run's deadline if that cut them."""

    grant: str
    timeout_s: float
    run_s: float | None = None


class ToolOutput(_Message, frozen=True, tag="tool.output"):
    """What a kernel-hosted tool returned, as text; `untrusted` if a stranger may have written it."""

    content: str
    untrusted: bool = False


class Tools(_Message, frozen=True, tag="tool.tools"):
    """The tools that the kernel hosts."""

    tools: list[ToolSpec]


class ToolServers(_Message, frozen=True, tag="tool.servers"):
    """List the MCP servers of the tools file; gives `McpServers`."""


class ToolPins(_Message, frozen=True, tag="tool.pins"):
    """Read what is approved of one MCP server, or of all; gives `ToolPinned`."""

    name: str | None = None


class ToolReview(_Message, frozen=True, tag="tool.review"):
    """Ask an MCP server what it lists now; gives `ToolReviewed`. Starts the server if need be."""

    name: str


class ToolApprove(_Message, frozen=True, tag="tool.approve"):
    """Pin what an MCP server lists, if it is still what `digest` of a review says; gives `Count`, the tools pinned.

    Only for the principal that the kernel belongs to.
    """

    name: str
    digest: str


class McpServerInfo(_Message, frozen=True):
    """An MCP server of the tools file."""

    name: str
    place: str
    """Its command or its URL."""
    state: Literal["stopped", "starting", "running", "failed"]
    approved_tools: int
    approved_by: str = ""
    """Empty: nothing of it was ever approved."""
    approved_s: float = 0.0
    protocol: str = ""
    """The version of the protocol, while it runs."""
    starts: int = 0
    error: str = ""
    """Why it ended last."""


class McpServers(_Message, frozen=True, tag="tool.server_list"):
    """MCP servers in the order of the tools file."""

    servers: list[McpServerInfo]


class PinnedTool(_Message, frozen=True):
    """An approved tool; its texts as a person may read them, with what cannot be seen escaped."""

    server: str
    tool: str
    digest: str
    description: str


class ToolPinned(_Message, frozen=True, tag="tool.pinned"):
    """Approved tools by server and name."""

    pins: list[PinnedTool]


class ToolChange(_Message, frozen=True):
    """One difference between what is approved and what a server lists; texts are escaped as in `PinnedTool`.

    `what` is `description`, `parameters`, `output`, `annotations` or `title`, or `new` or `gone`. `hidden` is what the
    new text spells in characters that no screen shows.
    """

    tool: str
    what: str
    before: str = ""
    after: str = ""
    hidden: str = ""


class ToolReviewed(_Message, frozen=True, tag="tool.reviewed"):
    """How a server's list differs from what is approved of it; `digest` names the list to `tool.approve`."""

    name: str
    digest: str
    changes: list[ToolChange]


# --- memory ---------------------------------------------------------------------------------------------------------


class Note(_Message, frozen=True, tag="memory.note"):
    """A piece of long-term memory. `score` is set by a search (higher is nearer).

    Where it comes from: `author` (the agent), `framework`, `program` (the run) and `source`, the conversation or
    document that it is a piece of. Times are seconds since 1970: `created_s` and `updated_s` when it was first and last
    written, `time_s` when what it tells happened, `expires_s` when it is over. `superseded_by` is the id of the note
    that stands in its place.
    """

    id: str
    namespace: str
    text: str
    author: str
    metadata: dict[str, Any] = {}
    created_s: float = 0.0
    score: float | None = None
    updated_s: float = 0.0
    framework: str = ""
    program: str = ""
    source: str | None = None
    time_s: float | None = None
    expires_s: float | None = None
    superseded_by: str | None = None
    searchable: bool = True
    """Whether searches find it, or only its id, age and metadata."""


class MemoryAdd(_Message, frozen=True, tag="memory.add"):
    """Remember a text; gives the `Note`. `namespace` None means the caller's own, `agent/<name>`; `group` its group's.

    With `id` an existing note of that id in the namespace is replaced. `embed=False` keeps a row that is found by id
    and metadata only (chat buffers, key-value stores). `source` names the conversation or document that the note is a
    piece of (None: what its metadata calls source, session, thread or conversation, else the caller's run); notes that
    follow one another in a source help to find each other. `time_s` is when it happened, `ttl_s` how many seconds it
    stays, `supersedes` the id of a note that searches shall find no more because of this one.
    """

    text: str
    namespace: str | None = None
    metadata: dict[str, Any] = {}
    id: str | None = None
    embed: bool = True
    source: str | None = None
    time_s: float | None = None
    ttl_s: float | None = None
    supersedes: str | None = None


class MemorySearch(_Message, frozen=True, tag="memory.search"):
    """Find the `k` notes that fit a query best; gives `Notes`.

    Only notes are ranked that the filters let pass: equality on metadata, `author`, and `time_s` (or, without one,
    `created_s`) between `since_s` and `until_s`. With `half_life_s` older notes lose, half of what recency is worth in
    so many seconds. An empty query lists the notes by age, oldest first, without ranking, beginning behind the note
    with the id `after`. `namespace` `all` means every namespace that the caller may read.
    """

    query: str = ""
    namespace: str | None = None
    k: int = 5
    filter: dict[str, str | int | float | bool] = {}
    author: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    half_life_s: float | None = None
    after: str | None = None


class MemoryGet(_Message, frozen=True, tag="memory.get"):
    """Read one note by id; gives `Note` or `NotFound`."""

    id: str
    namespace: str | None = None


class MemoryUpdate(_Message, frozen=True, tag="memory.update"):
    """Replace text and/or metadata of a note; gives the `Note`."""

    id: str
    text: str | None = None
    metadata: dict[str, Any] | None = None
    namespace: str | None = None


class MemoryDelete(_Message, frozen=True, tag="memory.delete"):
    """Forget one note, or with `id` None the whole namespace; gives `Count`."""

    id: str | None = None
    namespace: str | None = None


class MemorySpaces(_Message, frozen=True, tag="memory.spaces"):
    """List the namespaces of the caller's principal that have notes; gives `Spaces`: names and numbers, no contents."""


class MemoryRollback(_Message, frozen=True, tag="memory.rollback"):
    """Take back what an agent, and the agents inside it, wrote since a time (seconds since 1970); gives `Count`.

    Changes that others made since then stay. `namespace` `all` means every namespace that the caller may write to.
    """

    agent: str
    since_s: float
    namespace: str | None = "all"


class MemoryRecord(_Message, frozen=True, tag="memory.record"):
    """Add to the caller's interaction log: short-term memory, within a budget; gives the `Interaction`."""

    text: str
    role: str = ""


class MemoryRecall(_Message, frozen=True, tag="memory.recall"):
    """Read an interaction log; gives `Interactions`.

    `first` and `last` count from 1, or back from -1, the newest; `last` None means to the end. `program` is the
    caller's own, or an ended run of the same agent that kept its log.
    """

    first: int = 1
    last: int | None = None
    program: str | None = None


class MemoryKeep(_Message, frozen=True, tag="memory.keep"):
    """Let the caller's interaction log outlive its run, durable as notes are; without this it goes with the run."""


class Interaction(_Message, frozen=True, tag="memory.interaction"):
    """One entry of an interaction log, numbered from 1."""

    number: int
    role: str
    text: str
    at_s: float


class Interactions(_Message, frozen=True, tag="memory.interactions"):
    """Entries of an interaction log by number."""

    interactions: list[Interaction]


class MemoryReindex(_Message, frozen=True, tag="memory.reindex"):
    """Embed the notes of the caller's principal anew, in the background; gives `MemoryProgress`.

    `start=False` only asks how far embedding has come: after a change of the embedding model it runs by itself.
    """

    start: bool = True


class MemorySpace(_Message, frozen=True):
    """A namespace, how many notes it has, and how many of these searches find."""

    namespace: str
    notes: int
    searchable: int


class Spaces(_Message, frozen=True, tag="memory.space_list"):
    """Namespaces by name."""

    spaces: list[MemorySpace]


class MemoryProgress(_Message, frozen=True, tag="memory.progress"):
    """How far embedding by the present model has come: of `total` notes `left` are still found by their words only."""

    model: str
    total: int
    left: int


class Notes(_Message, frozen=True, tag="memory.notes"):
    """Search results, best first."""

    notes: list[Note]


# --- storage --------------------------------------------------------------------------------------------------------


class StoragePut(_Message, frozen=True, tag="storage.put"):
    """Write a new version of a file; gives `FileInfo`. `owner` None means the caller's own, `agent/<name>`."""

    path: str
    data: bytes
    owner: str | None = None


class StorageGet(_Message, frozen=True, tag="storage.get"):
    """Read a file, its newest version unless one is named; gives `FileData`."""

    path: str
    version: int | None = None
    owner: str | None = None


class StorageList(_Message, frozen=True, tag="storage.list"):
    """List files below a prefix, newest versions only; gives `Files`."""

    prefix: str = ""
    owner: str | None = None


class StorageVersions(_Message, frozen=True, tag="storage.versions"):
    """List all versions of a file, newest first; gives `Files`."""

    path: str
    owner: str | None = None


class StorageRollback(_Message, frozen=True, tag="storage.rollback"):
    """Write an old version again as the newest; gives `FileInfo`."""

    path: str
    version: int
    owner: str | None = None


class StorageDelete(_Message, frozen=True, tag="storage.delete"):
    """Delete all versions of every file at or below a path; gives `Count`."""

    path: str
    owner: str | None = None


class FileInfo(_Message, frozen=True, tag="storage.file"):
    """A version of a file, without its bytes."""

    path: str
    version: int
    size: int
    created_s: float


class FileData(_Message, frozen=True, tag="storage.data"):
    """A version of a file with its bytes."""

    info: FileInfo
    data: bytes


class Files(_Message, frozen=True, tag="storage.files"):
    """Several files or versions."""

    files: list[FileInfo]


# --- agents ---------------------------------------------------------------------------------------------------------


class AgentSpawn(_Message, frozen=True, tag="agent.spawn"):
    """Register a program (one run of an agent) under an id that the client chose; gives `Ok`.

    Sent again for a program without a framework it names that.
    """

    program: str
    agent: str
    framework: str = ""
    priority: Priority = "normal"
    group: str | None = None
    parent: str | None = None
    window: WindowStrategy | None = None
    """For its chats that name none; None: its parent's, or the kernel's."""
    budget: int | None = None
    """Tokens, prompts and answers, of this run and its children; None: as many as its parent has."""
    deadline_s: float | None = None
    """Seconds from now until its syscalls end with `DeadlineExceeded`, those of its children too..."""
    run_s: float | None = None
    """...of so many that the whole run was given, for the words of that error; None: the same."""
    tools: list[str] | None = None
    """Tools that it and its children may call; None: those that its parent may."""


class AgentExit(_Message, frozen=True, tag="agent.exit"):
    """End the calling program; frees all it holds, ends its children too."""

    error: str | None = None


class AgentSend(_Message, frozen=True, tag="agent.send"):
    """Put a message into the mailbox of an agent (by name) or of one program (by id); gives `Ok`."""

    to: str
    body: str
    topic: str = ""


class AgentReceive(_Message, frozen=True, tag="agent.receive"):
    """Take the oldest message from the caller's mailbox, waiting for one; gives `Mail`."""

    topic: str | None = None
    sender: str | None = None
    timeout_s: float | None = None


class AgentWait(_Message, frozen=True, tag="agent.wait"):
    """Wait until a program has finished; gives its `ProgramInfo`."""

    program: str
    timeout_s: float | None = None


class AgentPriority(_Message, frozen=True, tag="agent.priority"):
    """Change the priority of the caller's program or of one of its children."""

    priority: Priority
    program: str | None = None


class Mail(_Message, frozen=True, tag="agent.mail"):
    """A message from one agent to another."""

    sender: str
    body: str
    topic: str = ""
    sent_s: float = 0.0
    taint: list[str] = []
    """Where untrusted content that had reached its sender comes from; whoever takes the message is tainted too."""


class ProgramInfo(_Message, frozen=True, tag="agent.program"):
    """A row of the process table; times in seconds, `*_s` totals since the start."""

    program: str
    agent: str
    framework: str
    group: str
    principal: str
    priority: Priority
    parent: str | None
    state: ProgramState
    waiting_for: str
    started_s: float
    finished_s: float | None
    error: str | None
    llm_calls: int
    tool_calls: int
    memory_calls: int
    storage_calls: int
    other_calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queued_s: float
    running_s: float
    tool_s: float
    message_s: float
    snapshots: int
    service_tokens: int
    """Tokens that went through the model for it: its attained service."""
    resident_tokens: int
    """KV that it has in the pool, parked contexts included."""
    swapped_tokens: int
    """KV that it has in host memory or on disk."""
    replica: str = ""
    """The server that has its KV, of several."""


# --- access ---------------------------------------------------------------------------------------------------------


class AccessGrant(_Message, frozen=True, tag="access.grant"):
    """Give another agent rights that the caller holds by the policy, or as the owner of a space.

    On `agent/NAME/...` or `group/NAME/...` (both notes and files; with `memory/` or `storage/` before it one of them):
    `read`, `write`; on `job/AGENT`, its long jobs, too. On `tool/NAME` `call`; on `model/NAME` `use`; on
    `message/AGENT` `send`.
    """

    to: str
    resource: str
    rights: list[Right]


class AccessRevoke(_Message, frozen=True, tag="access.revoke"):
    """Take rights back."""

    to: str
    resource: str
    rights: list[Right]


class AccessGrants(_Message, frozen=True, tag="access.grants"):
    """List the grants of the caller's principal; gives `GrantList`."""


class AccessPolicy(_Message, frozen=True, tag="access.policy"):
    """Read the policy in force, for the kernel's own user; with `reload` read its file again first.

    Gives `PolicyText`.
    """

    reload: bool = False


class AccessCheck(_Message, frozen=True, tag="access.check"):
    """Ask what would be decided about an agent of the caller's principal, and by which rule; gives `AccessVerdict`.

    `program` asks about a run as it stands, with its parents and its taint; else a run of `agent` that nobody started.
    """

    right: Right
    resource: str
    agent: str = ""
    group: str | None = None
    framework: str = ""
    tainted: bool = False
    program: str | None = None


class AccessPending(_Message, frozen=True, tag="access.pending"):
    """List the calls that wait for the caller's answer, the oldest first; gives `Approvals`.

    Only those with numbers above `after`; with `wait` the answer comes when there is one.
    """

    after: int = 0
    wait: bool = False


class AccessApprove(_Message, frozen=True, tag="access.approve"):
    """Answer a call that waits for a person; gives `Ok`.

    `remember`: the same answer for the rest of that run, whenever the same rule asks about the same resource.
    """

    id: str
    allow: bool
    remember: bool = False


class GrantRow(_Message, frozen=True):
    """What one agent gave another. `holds`: whether the giver has it himself now, without which it is worth nothing."""

    to: str
    resource: str
    right: Right
    granted_by: str
    holds: bool


class GrantList(_Message, frozen=True, tag="access.grant_list"):
    """Grants by grantee and resource."""

    grants: list[GrantRow]


class PolicyText(_Message, frozen=True, tag="access.policy_text"):
    """The policy in force, as it is written, and where."""

    source: str
    text: str


class AccessVerdict(_Message, frozen=True, tag="access.decision"):
    """What is decided about a call, and the rule (or ownership, or grant) that decides."""

    effect: Literal["allow", "ask", "deny"]
    rule: str
    roles: list[str] = []


class Approval(_Message, frozen=True):
    """A call that waits for a person.

    All text that others wrote is cut to a length, keys and passwords are taken out, and what is no printable character
    is escaped. `taint`: where untrusted content that reached the run comes from. At `expires_s` (seconds since 1970)
    `default` counts.
    """

    id: str
    number: int
    agent: str
    program: str
    framework: str
    group: str
    principal: str
    right: Right
    resource: str
    arguments: str
    taint: list[str]
    rule: str
    asked_s: float
    expires_s: float
    default: Literal["allow", "deny"]


class Approvals(_Message, frozen=True, tag="access.approvals"):
    """Calls that wait for a person, the oldest first."""

    approvals: list[Approval]


class AccessAudit(_Message, frozen=True, tag="access.audit"):
    """Read the newest audit records of the caller's principal; gives `AuditRecords`."""

    limit: int = 100
    agent: str | None = None
    before: int | None = None
    """Only records with smaller sequence numbers: the next page."""


class AccessVerify(_Message, frozen=True, tag="access.verify"):
    """Recompute the audit log's chain and compare it with its signed seals; gives `AuditVerdict`."""


class AuditRecord(_Message, frozen=True, tag="access.record"):
    """What one syscall was and how it ended; `digest` chains it to the record before."""

    seq: int
    time_s: float
    principal: str
    agent: str
    program: str
    syscall: str
    resource: str
    outcome: str
    queued_s: float
    ran_s: float
    digest: str


class AuditRecords(_Message, frozen=True, tag="access.records"):
    """Audit records, newest first."""

    records: list[AuditRecord]


class AuditVerdict(_Message, frozen=True, tag="access.verdict"):
    """Whether the audit log is as it was written."""

    ok: bool
    records: int
    bad_seq: int | None = None
    """The first record at which it does not hold."""
    why: str = ""


# --- the kernel itself ----------------------------------------------------------------------------------------------


class KernelInfo(_Message, frozen=True, tag="kernel.info"):
    """Ask what this kernel is; gives `KernelStatus`."""


class KernelPs(_Message, frozen=True, tag="kernel.ps"):
    """List the programs; gives `Programs`."""

    finished: bool = True


class KernelKill(_Message, frozen=True, tag="kernel.kill"):
    """End a program, or all programs of an agent's name; gives `Count`."""

    target: str


class KernelTrace(_Message, frozen=True, tag="kernel.trace"):
    """Read the trace of this kernel's life; gives `Trace`. `program` narrows it to one run and its children."""

    program: str | None = None


class KernelPolicy(_Message, frozen=True, tag="kernel.policy"):
    """Let another scheduling policy decide from now on, with these options; open calls go on under it."""

    name: str
    options: dict[str, float | int | str | bool] = {}


class KernelShutdown(_Message, frozen=True, tag="kernel.shutdown"):
    """Stop the kernel after its open calls were cancelled.

    `if_idle`: only a kernel that would leave with its last client, and has none but the caller; else `Busy`.
    """

    if_idle: bool = False


class ExpertStatus(_Message, frozen=True):
    """The expert cache of a mixture (docs/experts.md); counts since the start."""

    experts: int
    """In all layers together..."""
    resident: int
    """...and those of them that are in memory."""
    cache_bytes: int
    """What the cache may take..."""
    used_bytes: int
    """...takes..."""
    all_bytes: int
    """...and would take to hold all experts in full precision."""
    hits: int
    """Experts that were in memory when a layer asked for them..."""
    late: int
    """...that were being read ahead..."""
    misses: int
    """...and that were neither."""
    prefetched: int
    bytes_read: int
    failed_reads: int
    waited_s: float
    """Seconds in which the engine could do nothing but wait for an expert."""
    predictor_hit_rate: float
    """Share of the experts used that the predictor had named."""
    int8_experts: int = 0
    """Experts that are served in int8..."""
    int8_logit_difference: float = 0.0
    """...the largest difference that this makes to a logit..."""
    int8_perplexity_ratio: float = 1.0
    """...and what it does to the perplexity of the model's own text; both as measured when they were converted."""


class Replica(_Message, frozen=True):
    """One of several servers of a model."""

    url: str
    up: bool
    """Whether it answers."""
    families: int
    """Programs, with all below them, that it has the KV of."""
    open_calls: int
    lost_calls: int
    """That it failed and another one took over."""


class KernelStatus(_Message, frozen=True, tag="kernel.status"):
    """The kernel at a glance; KV sizes in tokens."""

    version: str
    abi: int
    pid: int
    home: str
    model: str
    engine: str
    policy: str
    http: str | None
    uptime_s: float
    kv_tokens: int
    kv_free_tokens: int
    tokens_computed: int
    tokens_cached: int
    snapshots: int
    trace: str
    tokens_diverged: int = 0
    """KV of earlier turns that the next turn's prompt did not match, and that was computed again."""
    swap_host_bytes: int = 0
    swap_disk_bytes: int = 0
    windows_cut: int = 0
    """Chats that outgrew the window and were cut by their declared strategy..."""
    window_tokens_dropped: int = 0
    """...and the tokens that were left out of them."""
    experts: ExpertStatus | None = None
    """Of a model whose experts are in a cache."""
    loras: list[str] = []
    """The model's adapters, by which calls can name them."""
    replicas: list[Replica] = []
    """Where the model is served by several servers."""


class Programs(_Message, frozen=True, tag="kernel.programs"):
    """Rows of the process table, oldest first."""

    programs: list[ProgramInfo]


class Mark(_Message, frozen=True):
    """A moment in a span.

    `preempt` and `restore`: an open call's KV left the pool and came back. `swap_out`, `swap_in` and `drop`: the KV
    that the program's last call left was moved, or given up. `cut`: the conversation outgrew the window. `queued`: what
    the call found when it began to wait.
    """

    at_s: float
    kind: Literal["preempt", "restore", "swap_out", "swap_in", "drop", "cut", "queued"]
    detail: str = ""


class Span(_Message, frozen=True, tag="kernel.span"):
    """One syscall in the trace; times in seconds since the epoch."""

    program: str
    agent: str
    framework: str
    syscall: str
    detail: str
    outcome: str
    queued_s: float
    started_s: float
    ended_s: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    diverged_tokens: int = 0
    """KV of the turn before that this turn's prompt did not match."""
    marks: list[Mark] = []


class Trace(_Message, frozen=True, tag="kernel.trace_result"):
    """Spans in the order in which they ended."""

    spans: list[Span]


class Ok(_Message, frozen=True, tag="ok"):
    """Done; nothing to say."""


class Count(_Message, frozen=True, tag="count"):
    """How many things were touched."""

    count: int


Syscall: TypeAlias = Union[
    LlmChat, LlmEmbed,
    ToolBegin, ToolEnd, ToolInvoke, ToolList, ToolSubmit, ToolWait, ToolCancel, ToolJobs,
    ToolServers, ToolPins, ToolReview, ToolApprove,
    MemoryAdd, MemorySearch, MemoryGet, MemoryUpdate, MemoryDelete, MemorySpaces, MemoryRollback, MemoryReindex,
    MemoryRecord, MemoryRecall, MemoryKeep,
    StoragePut, StorageGet, StorageList, StorageVersions, StorageRollback, StorageDelete,
    AgentSpawn, AgentExit, AgentSend, AgentReceive, AgentWait, AgentPriority,
    AccessGrant, AccessRevoke, AccessGrants, AccessPolicy, AccessCheck, AccessPending, AccessApprove,
    AccessAudit, AccessVerify,
    KernelInfo, KernelPs, KernelKill, KernelTrace, KernelPolicy, KernelShutdown,
]  # fmt: skip
"""Everything that can be asked."""

Result: TypeAlias = Union[
    Ok, Count, LlmResult, Embeddings,
    ToolGrant, ToolOutput, Tools, ToolJob, JobList, McpServers, ToolPinned, ToolReviewed,
    Note, Notes, Spaces, MemoryProgress, Interaction, Interactions, FileInfo, FileData, Files, Mail, ProgramInfo,
    GrantList, PolicyText, AccessVerdict, Approvals, AuditRecords, AuditVerdict, KernelStatus, Programs, Trace,
]  # fmt: skip
"""Everything that can be answered."""


def name_of(call: Syscall) -> str:
    """The syscall's name on the wire, such as `llm.chat`."""
    tag = type(call).__struct_config__.tag
    assert isinstance(tag, str)
    return tag


# --- frames ---------------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag="hello"):
    """The client's first frame."""

    version: int
    token: str
    client: str = ""


class Request(_Message, frozen=True, tag="request"):
    """A syscall. `id` is the client's own, `timeout_s` the time it may take, `program` the caller."""

    id: int
    call: Syscall
    program: str | None = None
    timeout_s: float | None = None


class Cancel(_Message, frozen=True, tag="cancel"):
    """Stop a request; it still ends with exactly one `Done` or `Failed`."""

    id: int


class Welcome(_Message, frozen=True, tag="welcome"):
    """The kernel's first frame."""

    version: int
    principal: str
    pid: int


class Delta(_Message, frozen=True, tag="delta"):
    """A piece of a streamed answer."""

    id: int
    delta: LlmDelta


class Done(_Message, frozen=True, tag="done"):
    """The request ended with a result."""

    id: int
    result: Result


class Failed(_Message, frozen=True, tag="failed"):
    """The request ended with an error; `code` names a class of `aios_kernel.errors`. Id 0: the connection itself."""

    id: int
    code: str
    message: str
    agent: str | None = None
    syscall: str | None = None
    fix: str | None = None
    retry_after_s: float | None = None


ClientFrame: TypeAlias = Union[Hello, Request, Cancel]
KernelFrame: TypeAlias = Union[Welcome, Delta, Done, Failed]
