"""Nothing that a caller or a worker chooses steers the terminal of who looks at it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobwire import Client, RetryPolicy
from jobwire.cli import app

from tests.cli.hostile import LABEL, TEXT
from tests.cli.support import JOBWIRE, worker
from tests.support.terminals import Terminal, own_terminal

ROOT = Path(__file__).parents[2]
# What rich writes for colours, for bars and for a screen of its own.
_OWN = re.compile(
    # An interrupt may tear one of them apart, before the last ones.
    rb"\x1b\[?[0-9;?]*(?=\x1b)|\x1b\[[0-9;]*m|\x1b\[[0-9]*[A-K]|\x1b\[\?(25|1049)[hl]|\x1b\[H|\r(?!\n)"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def attacked(target: str) -> Iterator[dict[str, str]]:
    """A broker with a hostile worker, and what it did."""
    with worker(target, "tests.cli.hostile", ROOT), Client(target) as client:
        job = client.submit("attack", {TEXT: TEXT}, labels={"sly": LABEL}, unique_key=TEXT)
        failed = client.submit("attack", "fail", labels={"sly": LABEL})
        cancelled = client.submit("nobody", {TEXT: TEXT}, queue="others")
        client.cancel(cancelled.id, TEXT)
        stays = client.submit("stay")
        job.result(timeout=60)
        failed.wait(timeout=60)
        for event in stays.watch():
            if getattr(event, "progress", None) is not None:
                break
        client.create_schedule("sly", "attack", {TEXT: TEXT}, every=3600, labels={"sly": LABEL})
        (found,) = client.workers()
        yield {
            "target": target,
            "JOB": job.id,
            "FAILED": failed.id,
            "CANCELLED": cancelled.id,
            "WORKER": found.id,
        }
        client.cancel(stays.id)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("get JOB", 0, r"\\x1b\]0;owned"),
        ("get FAILED", 0, r"Sly\\x1b"),
        ("get CANCELLED", 0, r"cancelled +\\x1b"),
        ("get JOB --json", 0, r"\\u001b"),
        ("list", 0, r"Sly"),
        ("dead", 0, r"Sly"),
        ("workers", 0, r"sly"),
        ("workers show WORKER", 0, r"sly=\\x1b"),
        ("watch JOB", 0, r"\\x1b\]0;owned"),
        ("watch FAILED", 1, r"failed: Sly\\x1b"),
        ("watch FAILED --output-only", 1, r"\\x1b\]0;owned\\x07"),
        ("run attack", 0, r"\\x1b\]0;owned\\x07"),
        ("run attack --result", 0, r"\\u001b\]0;owned"),
        ('run attack "bytes" --result', 0, r"\\x1b\]0;owned"),
        ('submit attack "fail" --wait', 1, r"failed: Sly"),
        ("schedules get sly", 0, r"\\x1b|\\u001b"),
        ("top --once", 0, r"WORKER"),
        ("get \x1b]0;x\x07", 2, r"job_id: "),
        ("queues show \x1b[2J", 2, r"name: "),
        ("\x1b]0;x\x07", 2, r"No such command"),
        ("get JOB --\x9b2J", 2, r"No such option"),
    ],
)
@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_no_command_sends_a_control_character_to_a_terminal(
    attacked: dict[str, str], command: str, code: int, words: str, term: str
) -> None:
    arguments = [attacked.get(word, word) for word in command.split(" ")]
    arguments += ["--target", attacked["target"], "--timeout", "60s"]
    with own_terminal(term) as written:
        assert app.run(arguments) == code
    left = written() if term == "dumb" else _OWN.sub(b"", written())
    assert re.search(words, left.decode()), left
    assert not _CONTROL.search(left.decode()), left


def test_top_sends_none_while_it_is_live(attacked: dict[str, str]) -> None:
    with Terminal([*JOBWIRE, "top", "--target", attacked["target"]]) as terminal:
        terminal.read_until("WORKER")
        terminal.type("\x03")
        terminal.wait()
    assert not _CONTROL.search(_OWN.sub(b"", terminal.seen).decode())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_that_a_worker_logs_holds_one(target: str, log_format: str) -> None:
    queue = f"log-{log_format}"
    command = [*JOBWIRE, "worker", "tests.cli.hostile", "--target", target, "--queue", queue]
    command += ["--log-format", log_format]
    with Terminal(command, cwd=ROOT, columns=400) as terminal, Client(target) as client:
        terminal.read_until("serving")
        handle = client.submit("log", queue=queue, retry=RetryPolicy(max_attempts=1))
        # Read all the while: a worker waits for a terminal that takes no more.
        terminal.read_until("log failed after")
        handle.wait(timeout=60)
        terminal.type("\x03")
        assert terminal.wait() == 0
    # What the handler said twice, and what it raised, with the traceback.
    assert terminal.text.count("202eabc") >= 4
    left = _OWN.sub(b"", terminal.seen).decode()
    assert not _CONTROL.search(left), left
