"""People answer calls that wait: at the terminal, and by a function of their program."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from aios_adapters.cli.output import show_table

AIOS = str(Path(sys.executable).parent / "aios")
POLICY = """\
[[allow]]
rights = ["call", "use"]
resources = ["tool/*", "model/*"]
[[ask]]
name = "mail"
rights = ["call"]
resources = ["tool/mail"]
timeout_s = 60
"""
AGENT = """
import aios_adapters as aios
from aios_kernel.errors import AccessDenied

@aios.agent(name="worker")
def work():
    scope = aios.current()
    for _ in range(2):
        try:
            scope.run_tool("mail", '{"to": "ann"}', lambda: print("sent", flush=True))
        except AccessDenied as error:
            print("refused:", error.message, flush=True)

work()
"""
CALLBACK = """
import threading
seen = []

def answer(approval):
    seen.append((approval.agent, approval.resource, approval.arguments))
    return ANSWER

import aios_adapters as aios
stop = aios.on_approval(answer)
"""


class Shell:
    """A served kernel under the policy, and `aios` commands beside it."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        (home / "access.toml").write_text(POLICY)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        settings = {"AIOS_MODEL": "fake", "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact", "AIOS_HOME": str(home)}
        self.environment = clean | settings
        self.home = home

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run([AIOS, *arguments], env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def agent(self, code: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], env=self.environment, stdout=subprocess.PIPE, text=True)

    def asked(self) -> str:
        """The id of the call that waits."""
        until = time.monotonic() + 30
        while not (waiting := json.loads(self("approvals", "--json"))):
            assert time.monotonic() < until
        assert len(waiting) == 1
        return waiting[0]["id"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Generator[Shell]:
    made = Shell(tmp_path_factory.mktemp("approvals") / "home")
    serving = subprocess.Popen([AIOS, "serve"], env=made.environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (made.home / "run" / "kernel.sock").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    yield made
    serving.terminate()
    serving.wait(20)


def test_calls_are_listed_approved_and_denied(shell: Shell) -> None:
    agent = shell.agent(AGENT)
    id = shell.asked()
    assert "tool/mail" in shell("approvals")
    shell("approve", id)
    shell("deny", shell.asked())
    output, _ = agent.communicate(timeout=30)
    assert output.splitlines()[0] == "sent"
    assert output.splitlines()[1].startswith("refused:")
    assert "no call with the id" in shell("approve", id, status=1)


def test_a_table_shows_text_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Who wrote the arguments must not be able to hide a part of them, or to break the listing."""
    show_table("", ("WITH",), [("a [conceal]hidden[/conceal] [/nope] [link=x]y",)])
    assert "a [conceal]hidden[/conceal] [/nope] [link=x]y" in capsys.readouterr().out


def test_one_answer_for_the_run(shell: Shell) -> None:
    agent = shell.agent(AGENT)
    shell("approve", shell.asked(), "--remember")
    assert agent.communicate(timeout=30)[0] == "sent\nsent\n"


def test_a_person_watches_at_a_terminal(shell: Shell) -> None:
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(
        [AIOS, "approvals", "--watch"], env=shell.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = bytearray()

    def until(text: str) -> None:
        ends_at = time.monotonic() + 30
        while text not in shown.decode(errors="replace"):
            assert time.monotonic() < ends_at, shown
            if select.select([ours], [], [], 0.1)[0]:
                shown.extend(os.read(ours, 4096))

    try:
        until("waiting for calls")
        agent = shell.agent(AGENT)
        until("[s]kip")
        assert 'agent "worker"' in shown.decode()
        assert '{"to":"ann"}' in shown.decode().replace(" ", "")
        shown.clear()
        os.write(ours, b"y\n")
        until("[s]kip")
        os.write(ours, b"n\n")
        output, _ = agent.communicate(timeout=30)
        assert output.startswith("sent\nrefused:")
    finally:
        watching.terminate()
        watching.wait(20)
        os.close(ours)


@pytest.mark.parametrize(("answer", "says"), [("True", "sent\nsent"), ("'always'", "sent\nsent"), ("False", "refused")])
def test_a_function_of_the_program_answers(shell: Shell, answer: str, says: str) -> None:
    code = CALLBACK.replace("ANSWER", answer) + AGENT + "\nprint(len(seen), seen[0])\nstop()\n"
    output, _ = shell.agent(code).communicate(timeout=30)
    assert output.startswith(says)
    count = 1 if answer == "'always'" else 2
    assert output.splitlines()[-1].startswith(f"{count} ('worker', 'tool/mail', '{{\"to\":")


def test_a_function_that_fails_leaves_the_call_to_others(shell: Shell) -> None:
    agent = shell.agent(CALLBACK.replace("ANSWER", "1 / 0") + AGENT)
    shell("approve", shell.asked(), "--remember")
    assert agent.communicate(timeout=30)[0] == "sent\nsent\n"


def test_the_policy_is_shown_checked_and_read_again(shell: Shell) -> None:
    assert POLICY in shell("access", "show")
    assert json.loads(shell("access", "show", "--json"))["source"] == str(shell.home / "access.toml")
    assert shell("access", "check", "ann", "call", "tool/x").startswith("allow: allow[0] (")
    assert shell("access", "check", "ann", "call", "tool/mail", status=1).startswith('ask: ask "mail" (')
    assert shell("access", "check", "ann", "read", "agent/bob", status=1).startswith("deny: nothing allows it")
    assert json.loads(shell("access", "check", "ann", "read", "agent/ann", "--json"))["rule"] == "it owns the space"
    assert "is no right" in shell("access", "check", "ann", "fly", "tool/x", status=2)
    assert json.loads(shell("access", "grants", "--json")) == []
    (shell.home / "access.toml").write_text(POLICY + "[taint]\nsource = []\n")
    wrong = shell("access", "reload", status=1)
    assert "access.toml:10: taint.source: Object contains unknown field `source`" in wrong
    assert "fix: edit" in wrong
    (shell.home / "access.toml").write_text(POLICY)
    assert "the policy is now that of" in shell("access", "reload")


def test_grants_are_listed_with_whether_they_hold(shell: Shell) -> None:
    code = (
        "import aios_adapters as aios\nfrom aios_kernel.syscalls import AccessGrant, Ok\n"
        "@aios.agent(name='ann')\ndef give():\n"
        "    aios.current().call(AccessGrant(to='bob', resource='tool/x', rights=['call']), Ok)\n"
        "give()\n"
    )
    shell.agent(code).communicate(timeout=30)
    (row,) = json.loads(shell("access", "grants", "--json"))
    assert row == {"to": "bob", "resource": "tool/x", "right": "call", "granted_by": "ann", "holds": True}
    assert "tool/x" in shell("access", "grants")


def test_closing_the_terminal_still_ends_a_kernel(tmp_path: Path) -> None:
    """SIGHUP reads the policy again, but a kernel whose terminal has gone must not stay behind."""
    home = tmp_path / "home"
    shell = Shell(home)
    pid, ours = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs these tests may have had it ignored (nohup)
        os.execvpe(AIOS, [AIOS, "serve"], shell.environment)
    until = time.monotonic() + 60
    while not (home / "run" / "kernel.sock").exists() or _read(ours):
        assert time.monotonic() < until
    os.close(ours)
    os.waitpid(pid, 0)
    until = time.monotonic() + 20
    while (home / "run" / "kernel.sock").exists():
        assert time.monotonic() < until, "the kernel outlived its terminal"
        time.sleep(0.05)


def _read(terminal: int) -> bool:
    """Whether something was shown within a moment."""
    return bool(select.select([terminal], [], [], 0.3)[0] and os.read(terminal, 4096))
