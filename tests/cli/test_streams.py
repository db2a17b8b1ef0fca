"""Output in any encoding, streams that are closed or full, readers that leave, signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobwire import Client, NewJob
from jobwire.cli import app

from tests.cli.support import JOBWIRE
from tests.support.terminals import Terminal, own_terminal

# As where no locale is set, and Python is kept from taking UTF-8 all the same.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
ENCODINGS: list[Mapping[str, str]] = [
    ASCII,
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "utf-8:strict"},
]
WORDS = "ä…→\U0001f600"


def shell(
    line: str, target: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which `jobwire` is the command."""
    jobwire = shlex.join(JOBWIRE)
    return subprocess.run(
        ["bash", "-c", f'jobwire() {{ {jobwire} "$@"; }}; set -o pipefail; {line}'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "JOBWIRE_TARGET": target, **(environment or {})},
    )


# Commands of one process, each begun where the one before it ended well.
SEVERAL = """
import sys
from jobwire.cli import main
for arguments in {commands!r}:
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.mark.parametrize("environment", ENCODINGS, ids=str)
def test_results_tables_and_facts_are_printed_in_any_encoding(
    busy_target: str, environment: Mapping[str, str]
) -> None:
    with Client(busy_target) as client:
        job_id = client.submit("nobody", "é", labels={"word": WORDS}, queue="spelt").id
        client.cancel(job_id, WORDS)
    result = ["submit", "echo", json.dumps({"text": WORDS}), "--wait"]
    commands = [result, ["get", job_id], ["list", "-q", "spelt"]]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL.format(commands=commands)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "JOBWIRE_TARGET": busy_target, **environment},
    )
    assert done.returncode == 0, done.stderr
    encoding = environment.get("PYTHONIOENCODING", "ascii").partition(":")[0]
    first, _, shown = done.stdout.decode(encoding).partition("\n")
    assert json.loads(first) == {"text": WORDS}
    facts, _, table = shown.partition("OPERATION")
    word = WORDS.encode(encoding, "backslashreplace").decode(encoding)
    assert word in facts
    assert job_id in table


def test_bars_and_tables_are_drawn_in_ascii_where_there_is_no_more(busy_target: str) -> None:
    line = [*JOBWIRE, "submit", "echo", '"x"', "--wait", "--target", busy_target]
    with Terminal(line, environment=ASCII) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert terminal.seen.isascii()
    assert "\\u" not in terminal.text
    with Terminal([*JOBWIRE, "top", "--target", busy_target], environment=ASCII) as terminal:
        terminal.read_until("WORKER")
        terminal.type("\x03")
        terminal.wait()
    assert terminal.seen.isascii()
    assert "\\u" not in terminal.text


GOOD = "jobwire submit echo '\"x\"' --wait"
BAD = "jobwire run fail"
WRONG = "jobwire get default-00000000000000000000000000"


@pytest.mark.parametrize(
    ("closed", "line", "code", "said"),
    [
        ("<&-", GOOD, 0, b'"x"\n'),
        (">&-", GOOD, 0, b""),
        (">&-", BAD, 1, b""),
        ("2>&-", GOOD, 0, b'"x"\n'),
        ("2>&-", WRONG, 3, b""),
        ("<&- >&- 2>&-", GOOD, 0, b""),
        ("<&- >&- 2>&-", BAD, 1, b""),
        ("<&- >&- 2>&-", WRONG, 3, b""),
    ],
)
def test_closed_streams_change_no_exit_code(
    busy_target: str, closed: str, line: str, code: int, said: bytes
) -> None:
    done = shell(f"{line} {closed}", busy_target)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_worker_with_closed_streams_works(target: str, closed: str) -> None:
    queue = f"closed-{len(closed)}-{ord(closed[0])}"
    root = Path(__file__).parents[2]
    worker = subprocess.Popen(
        ["bash", "-c", f"exec {shlex.join(JOBWIRE)} worker tests.cli.handlers -q {queue} {closed}"],
        cwd=root,
        env=os.environ | {"JOBWIRE_TARGET": target},
    )
    try:
        with Client(target) as client:
            assert client.submit("echo", 1, queue=queue).result(timeout=60) == 1
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


def test_a_payload_from_a_closed_standard_input_is_refused_as_such(target: str) -> None:
    done = shell("jobwire submit nobody - <&-", target)
    assert done.returncode == 2
    assert b"standard input, which should hold the payload, is closed" in done.stderr


@pytest.mark.parametrize("command", ["list -q long", "list -q long --json", "--help"])
def test_a_reader_that_leaves_early_gets_no_complaint(target: str, command: str) -> None:
    with Client(target) as client:
        client.submit_many(
            [NewJob(operation="nobody", payload="x" * 100, queue="long") for _ in range(300)]
        )
    done = shell(
        f"jobwire {command} -n 0 | head -1" if "-q" in command else f"jobwire {command} | head -1",
        target,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named(target: str) -> None:
    done = shell("jobwire info > /dev/full", target)
    assert done.returncode == 74
    assert b"can't be written: No space left" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([b"submit", b"a\xffb", b"1"], "OPERATION"),
        ([b"get", b"\xff"], "JOB_ID"),
        ([b"submit", b"nobody", b"1", b"-q", b"\xff"], "--queue"),
        ([b"submit", b"nobody", b"1", b"-l", b"a=\xff"], "--label"),
        ([b"--target", b"\xff", b"list"], "--target"),
    ],
)
def test_bytes_that_are_no_text_are_refused_with_the_name_of_the_option(
    arguments: list[bytes], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run([os.fsdecode(one) for one in arguments]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert "not UTF-8 text" in said
    assert "Traceback" not in said


def test_bytes_that_are_no_text_are_a_payload_like_any_other(target: str) -> None:
    done = shell("jobwire submit nobody $'\\xff' --bytes; jobwire get $'\\xff'", target)
    assert done.returncode == 2
    assert done.stdout.startswith(b"default-")
    assert b"not UTF-8 text" in done.stderr


def test_arguments_in_utf_8_are_read_where_no_locale_is_set(target: str) -> None:
    done = shell("jobwire submit nobody 1 -l word=ä --json", target, ASCII)
    assert done.returncode == 0, done.stderr
    with Client(target) as client:
        assert client.get(json.loads(done.stdout)["job_id"]).labels == {"word": "ä"}


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": value} for value in ("0", "1", "-5", "²", "wide", "99999999999")]
    + [{"TERM": "dumb"}, {"TERM": ""}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}],
    ids=str,
)
def test_an_odd_terminal_is_written_to_all_the_same(
    target: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(target) as client:
        job_id = client.submit("nobody", 1, queue="odd").id
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with own_terminal(environment.get("TERM", "xterm-256color")) as written:
        assert app.run(["list", "-q", "odd", "--target", target, "--timeout", "60s"]) == 0
    assert job_id in written().decode()
    if "TERM" in environment:
        assert b"\x1b" not in written()
    if "NO_COLOR" in environment:
        assert b"\x1b[34m" not in written()


def test_a_pipe_gets_no_colours_whatever_the_environment_says(target: str) -> None:
    done = shell("jobwire info", target, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"})
    assert done.returncode == 0
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_gives_the_terminal_back_and_is_told_by_the_exit_code(
    busy_target: str, number: signal.Signals, code: int
) -> None:
    with Terminal([*JOBWIRE, "submit", "wait", "--wait", "--target", busy_target]) as terminal:
        job_id = terminal.read_until(r"(default-\w{26}) RUNNING")[1]
        terminal.process.send_signal(number)
        assert terminal.wait() == code, terminal.text
    assert "Traceback" not in terminal.text
    # The cursor that the bar hid is shown again.
    assert terminal.seen.rfind(b"\x1b[?25h") > terminal.seen.rfind(b"\x1b[?25l")
    with Client(busy_target) as client:
        client.cancel(job_id)


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(
    target: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "real = m.entry_points\n"
        "def broken(**k):\n"
        "    if k: raise RuntimeError('\\x1b]0;x\\x07 broken')\n"
        "    return real(**k)\n"
        "m.entry_points = broken\n"
    )
    done = shell("jobwire nothing", target, {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    assert b"RuntimeError: \\x1b]0;x\\x07 broken" in line
    assert b"JOBWIRE_DEBUG=1" in line
    debug = {"PYTHONPATH": str(tmp_path), "JOBWIRE_DEBUG": "1"}
    shown = shell("jobwire nothing", target, debug)
    assert b"Traceback" in shown.stderr


def test_without_an_answer_the_server_is_named_with_the_remedy() -> None:
    # It takes connections and never answers.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        done = shell(f"jobwire list --timeout 300ms --target {address}", "")
    assert done.returncode == 4
