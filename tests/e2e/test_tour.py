"""The tour of the README, typed line by line, in its order, with what it says beside the lines."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import free_port
from tests.support.terminals import Terminal

ROOT = Path(__file__).parents[2]
_ID = re.compile(r"\bdefault-[0-9a-hjkmnp-tv-z]{26}\b")


def blocks(section: str) -> list[tuple[str, str]]:
    """The blocks of code under a heading, each with its language."""
    text = (ROOT / "README.md").read_text()
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def first_program() -> str:
    """What the tour calls the first program above."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]


class Reader:
    """Somebody with three terminals: for the server, for the worker, and for all the rest.

    The server listens where nobody else does, and words of the text are slept through faster.
    """

    def __init__(self, folder: Path, grpcurl: str | None) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.grpcurl = grpcurl
        self.program = first_program()
        (folder / "counter.py").write_text(self.program)
        self.server: Terminal | None = None
        self.worker: Terminal | None = None
        self.job_id = ""
        self.said: dict[str, str] = {}

    def _terminal(self, line: str) -> Terminal:
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        if self.grpcurl:
            path.insert(0, str(Path(self.grpcurl).parent))
        environment = {
            "PATH": os.pathsep.join(path),
            "JOBWIRE_TARGET": self.address,
            "JOBWIRE_LISTEN": self.address,
            "JOBWIRE_HTTP_LISTEN": "",
        }
        return Terminal(["bash", "-c", line], cwd=self.folder, environment=environment, columns=200)

    def type(self, line: str) -> str:
        """Types a line, and returns what came of it."""
        if line.startswith("jobwire serve"):
            self.server = self._terminal(line)
            self.server.read_until("serving")
            return ""
        if line.startswith("jobwire worker "):
            self.start_worker()
            return ""
        line = line.replace("JOB_ID", self.job_id).replace("127.0.0.1:50051", self.address)
        if "WORKER_ID" in line:
            named = re.search(r"^(\S+-\d+-\w+) +READY", self.said["jobwire workers"], re.MULTILINE)
            assert named, self.said
            line = line.replace("WORKER_ID", named[1])
        with self._terminal(line) as terminal:
            if line.startswith("jobwire top"):
                terminal.read_until("QUEUE")
                terminal.type("\x03")
            code = terminal.wait()
            assert code == 0, f"{line}\nended with {code}:\n{terminal.text}"
        found = _ID.search(terminal.text)
        if re.match("jobwire submit|jobwire run|grpcurl.*SubmitJob", line) and found:
            self.job_id = found[0]
        self.said[line] = terminal.text
        return terminal.text

    def add(self, code: str) -> None:
        """Adds a handler above the last lines of the program, and starts the worker again."""
        imports, _, handler = (
            code.rpartition("\n\n") if code.startswith("import") else ("", "", code)
        )
        handler = handler.replace("time.sleep(1)", "time.sleep(0.3)")
        before, last = self.program.split("if __name__")
        self.program = f"{before}{imports}\n\n{handler}\nif __name__{last}"
        (self.folder / "counter.py").write_text(self.program)
        self.start_worker()

    def start_worker(self) -> None:
        """Starts it, after what runs of it has ended."""
        self.stop_worker()
        self.worker = self._terminal("exec jobwire worker counter:worker")
        self.worker.read_until("serving")

    def stop_worker(self) -> None:
        """Presses Ctrl-C where the worker runs."""
        if self.worker is not None:
            with self.worker as terminal:
                terminal.type("\x03")
                assert terminal.wait() == 0, terminal.text
        self.worker = None

    def leave(self) -> None:
        """Ends both."""
        self.stop_worker()
        if self.server is not None:
            with self.server as terminal:
                terminal.type("\x03")
                terminal.wait()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in an empty directory."""
    beside = Path.home() / "go" / "bin"
    grpcurl = shutil.which("grpcurl", path=os.pathsep.join([os.environ["PATH"], str(beside)]))
    made = Reader(tmp_path, grpcurl)
    try:
        yield made
    finally:
        made.leave()


def lines(block: str) -> list[str]:
    """The lines of a block as a shell takes them."""
    joined = re.sub(r"\\\n\s*", " ", block)
    # A request in quotes may span lines.
    found: list[str] = []
    for line in joined.splitlines():
        if found and found[-1].count("'") % 2:
            found[-1] += " " + line.strip()
        elif line.strip():
            found.append(line)
    return found


@pytest.mark.timeout(300)
def test_the_tour_works_line_by_line(reader: Reader) -> None:
    told: list[str] = []
    for language, code in blocks("Ten minutes"):
        if language == "python":
            reader.add(code)
            continue
        by_hand = "RegisterWorker" in code
        if by_hand:
            reader.stop_worker()
        for line in lines(code):
            if line.startswith("grpcurl") and reader.grpcurl is None:
                continue
            if by_hand and reader.grpcurl is None:
                continue
            told.append(reader.type(line))
        if by_hand:
            reader.start_worker()
    everything = "\n".join(told)
    # What the text around the lines says of them.
    assert re.search(r"PENDING +text\.count", everything)
    assert '{"words": 6}' in everything
    assert "d\nu\nr\na\nb\nl\ne\n" in everything.replace("\r\n", "\n")
    assert "CANCELLING" in everything
    assert "is draining" in everything
    if reader.grpcurl:
        assert "service JobService" in everything
        assert everything.count('"JOB_STATE_SUCCEEDED"') >= 2
    assert reader.worker is not None
    reader.worker.wait()


def test_each_program_of_the_tour_says_what_it_needs() -> None:
    programs = [code for language, code in blocks("Ten minutes") if language == "python"]
    assert len(programs) == 2
    # Whoever cancels a job of the tour sees it end.
    assert all("raise_if_cancelled" in code for code in programs)
