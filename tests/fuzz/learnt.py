"""What the answers have told so far, for the requests to come: ids, tokens, cursors, leases."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

KEPT = 100
"""Of each kind, the latest."""
_KEYS = ("_id", "token", "cursor", "revision", "queue")
_OPAQUE = ("page_token", "cursor")
_JOB = re.compile(r"[a-z0-9._-]{1,63}-[0-7][0-9a-z]{25}")
_PLURALS = ("_ids", "queues", "operations", "tokens", "features")

Lease = tuple[str, str, int]
"""Worker, job, fencing token."""


def name_of(field: FieldDescriptor) -> str:
    """Return what a field is called wherever the same thing is meant."""
    name: str = field.name
    if name == "id":
        return f"{field.containing_type.name.lower()}_id"
    if name == "name":
        return str(field.containing_type.name).lower()
    name = name.removeprefix("next_").removeprefix("sample_")
    if name in _OPAQUE:
        # One method takes nothing of another's, but what a watch of a job begins with.
        stem = field.containing_type.name.removesuffix("Request").removesuffix("Response")
        return f"{stem.replace('RunJob', 'WatchJob')} {name}"
    return name[:-1] if name.endswith(_PLURALS) else name


def fields_below(message: Message) -> Iterator[tuple[Message, FieldDescriptor, Any]]:
    """Return every field that is set, of the message and of all messages in it."""
    for field, value in message.ListFields():
        yield message, field, value
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = (
                value.values() if field.message_type.fields_by_name["value"].message_type else ()
            )
        else:
            inner = value if field.is_repeated else (value,)
        for each in inner:
            yield from fields_below(each)


class Learnt:
    """Keeps the latest values of each kind."""

    def __init__(self) -> None:
        self._values: dict[str, deque[Any]] = {}
        self._leases: dict[bool, deque[Lease]] = {
            on_stream: deque(maxlen=KEPT) for on_stream in (False, True)
        }

    def add(self, name: str, value: Any) -> None:
        """Keep a value. Ids that are none are answered only to be told back."""
        if name == "job_id" and not _JOB.fullmatch(value):
            return
        kept = self._values.get(name)
        if kept is None:
            kept = self._values[name] = deque(maxlen=KEPT)
        if value not in kept:
            kept.append(value)

    def hear(self, answer: Message, worker: str, *, on_stream: bool = False) -> None:
        """Keep what an answer tells.

        Args:
            worker: Whose call it was. Empty: anybody's.
            on_stream: It came on a worker's stream, which holds its jobs no longer than itself.
        """
        for message, field, value in fields_below(answer):
            name = name_of(field)
            if field.message_type is None and name.endswith(_KEYS):
                for each in value if field.is_repeated else (value,):
                    self.add(name, each)
            if field.name == "fencing_token" and (job := getattr(message, "job_id", "")):
                lease = getattr(message, "worker_id", "") or worker, job, value
                if lease not in self._leases[on_stream]:
                    self._leases[on_stream].append(lease)

    def draw(self, name: str, rng: random.Random) -> Any:
        """Return a value of a kind, None if none is known; one of the last more often."""
        kept = self._values.get(name)
        return _recent(kept, rng) if kept else None

    def job(self, queue: str, rng: random.Random) -> str:
        """Return a job, of a queue if one is named; empty if none is known."""
        jobs = self._values.get("job_id", ())
        if queue:
            jobs = [job for job in jobs if job[:-27] == queue]
        return _recent(jobs, rng) if jobs else ""

    def lease(self, worker: str, rng: random.Random, *, on_stream: bool = False) -> Lease | None:
        """Return a lease, rather one of this worker."""
        held = self._leases[on_stream if rng.random() < 0.95 else not on_stream]
        of_worker = [lease for lease in held if lease[0] == worker] if worker else []
        # Older ones have mostly come to their end.
        return _recent(of_worker or held, rng, 5) if held else None


def _recent(kept: Any, rng: random.Random, power: int = 2) -> Any:
    return kept[-1 - int(len(kept) * rng.random() ** power)]
