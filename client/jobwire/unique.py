"""Unique keys: at most one job of a queue holds a key at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jobwire._convert import Seconds, from_duration, to_duration
from jobwire.v1 import job_pb2

Scope = Literal["pending", "unfinished", "period"]
OnConflict = Literal["return_existing", "reject", "replace_pending"]


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A key that at most one job of a queue holds at a time.

        client.submit("invoice.send", invoice, unique_key=UniqueKey("invoice-4711"))

    Raises:
        ValueError: There is no such scope or `on_conflict`, or a period is given for another scope
            than `period`, or missing for that one.
    """

    key: str
    """1 to 128 bytes, in your own words: `invoice-4711`."""
    scope: Scope | None = None
    """How long a job holds it. `pending`: until the job is first handed to a worker. `unfinished`:
    until it has ended. `period`: for `period` after it was accepted, whatever happens. None:
    `period` if one is given, `unfinished` otherwise."""
    period: Seconds | None = None
    """As seconds or timedelta, 1 second to 365 days."""
    on_conflict: OnConflict = "return_existing"
    """What to do if another job holds the key. `return_existing`: return that job, with `existed`
    True. `reject`: `UniqueKeyTaken`. `replace_pending`: a job that has never started is cancelled
    and this one takes its key; one that has started is not replaced: `UniqueKeyTaken`."""

    def __post_init__(self) -> None:
        if self.scope not in (None, *get_args(Scope)):
            raise ValueError(f"{self.scope!r} is not a scope; use {', '.join(get_args(Scope))}")
        if self.on_conflict not in get_args(OnConflict):
            raise ValueError(
                f"{self.on_conflict!r} is not an on_conflict; use {', '.join(get_args(OnConflict))}"
            )
        if self.scope == "period" and self.period is None:
            raise ValueError("the scope 'period' needs a period: period=timedelta(hours=1)")
        if self.scope not in (None, "period") and self.period is not None:
            raise ValueError(f"the scope {self.scope!r} takes no period")

    def to_proto(self) -> job_pb2.UniqueKey:
        """Return the wire's form."""
        scope = self.scope or ("unfinished" if self.period is None else "period")
        return job_pb2.UniqueKey(
            key=self.key,
            scope=job_pb2.UniqueScope.Value(f"UNIQUE_SCOPE_{scope.upper()}"),
            period=None if self.period is None else to_duration(self.period, "period"),
            on_conflict=job_pb2.UniqueConflict.Value(f"UNIQUE_CONFLICT_{self.on_conflict.upper()}"),
        )

    @classmethod
    def from_proto(cls, proto: job_pb2.UniqueKey) -> UniqueKey:
        """Read the wire's form."""
        return cls(
            key=proto.key,
            scope=_SCOPES.get(proto.scope, "unfinished"),
            period=from_duration(proto.period) if proto.HasField("period") else None,
            on_conflict=_CONFLICTS.get(proto.on_conflict, "return_existing"),
        )


_SCOPES: dict[int, Scope] = {
    job_pb2.UniqueScope.Value(f"UNIQUE_SCOPE_{scope.upper()}"): scope for scope in get_args(Scope)
}
_CONFLICTS: dict[int, OnConflict] = {
    job_pb2.UniqueConflict.Value(f"UNIQUE_CONFLICT_{conflict.upper()}"): conflict
    for conflict in get_args(OnConflict)
}
