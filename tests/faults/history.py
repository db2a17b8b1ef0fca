"""What happened, as every participant wrote it down: one JSON object a line.

Times are those of `time.monotonic()`, which all processes of a machine share and which no wrong
clock touches. A line is one write to a file opened for appending, so that a kill -9 leaves whole
lines or none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""`t`: when; `who`: the participant's name; `pid`: its process; `what`: the kind; the rest by kind.

=============  =====================================================================================
`what`         and with it
=============  =====================================================================================
start kill     of the runner: `target`, `victim` (the process id), for faults `fault` (a number)
stop cont
term exit
cut deaf slow
full heal
submit         `key` (a job's id or `request:`…), `wish` (what was asked for), before the call
accepted       `key`, `job`, `existed`
refused        `key`, `reason`, `code`, `text`: the last word of the SDK, or of one bare call
cancel redrive `job`, before the call
begin          of a handler: `job`, `token`, `attempt`, `kind`, `checkpoint`
saved          `job`, `token`, `row`: after the store has it
told           `job`, `token`, `reason`: a handler was told to stop
end            `job`, `token`, `how` (ok, failed, fatal, stopped), `reason`
seen           of a watcher: `job`, `watch`, `state`, `revision`, `token`, `redrives`
output         `job`, `watch`, `attempt`, `offset`, `text`
watch-end      `job`, `watch`, `error` (empty if it ended with the job)
=============  =====================================================================================
"""


class Journal:
    """Appends to one file; safe across threads and processes.

    Args:
        path: The file; made if it is missing.
        who: The participant.
        pid: Of its process, where that is not the one that writes; 0: that one.
    """

    def __init__(self, path: Path, who: str, pid: int = 0) -> None:
        self.who = who
        self.pid = pid or os.getpid()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, what: str, **facts: Any) -> None:
        """Writes a line with the time it is now."""
        line = {"t": round(time.monotonic(), 6), "who": self.who, "pid": self.pid, "what": what}
        os.write(self._file, json.dumps({**line, **facts}).encode() + b"\n")

    def close(self) -> None:
        """Closes the file; what was written is there."""
        os.close(self._file)


class Follower:
    """Reads on in the histories of a folder while they are written, from now on.

    Args:
        folder: Files may still come.
        what: The one kind of event that is wanted.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self.events: list[Event] = []
        """So far, each history in its order."""
        self._mark = f'"what": "{what}"'.encode()
        self._read = {path: path.stat().st_size for path in folder.glob("*.jsonl")}

    def since(self, moment: float) -> list[Event]:
        """The events from a moment on."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as history:
                history.seek(self._read.get(path, 0))
                text = history.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            self.events += [json.loads(line) for line in whole.splitlines() if self._mark in line]
        return [event for event in self.events if event["t"] >= moment]


def read(folder: Path) -> list[Event]:
    """Every line of every history in a folder, in the order of time."""
    found = [event for path in sorted(folder.glob("*.jsonl")) for event in _lines(path)]
    return sorted(found, key=lambda event: event["t"])


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().splitlines():
        # Where a disk was full, a line may be cut.
        if line.endswith(b"}"):
            yield json.loads(line)
