"""The renewal of leases alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.domain.model import CancelNotice, Renewal
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.workers import leases
from jobwire_server.workers.broker_parts import Reports
from jobwire_server.workers.held_leases import HeldLeases
from jobwire_server.workers.leases import Leases
from jobwire_server.workers.session import WorkerSession

from tests.support.jobs import next_ulid


class Session:
    """What the renewal knows of a session."""

    lease_ms = 1_000

    def __init__(self, worker_id: str, held: dict[str, int], renewable: bool = True) -> None:
        self.worker_id = worker_id
        self.leases = HeldLeases(0)
        self.leases.tokens.update(held)
        self.renewable = renewable
        self.lost: list[str] = []
        self.cancelled: list[str] = []

    def lose(self, job_id: str, fencing_token: int) -> None:
        """Notes a loss."""
        assert self.leases.tokens.pop(job_id) == fencing_token
        self.lost.append(job_id)

    def cancel(self, notice: CancelNotice) -> None:
        """Notes a cancellation."""
        self.cancelled.append(notice.job_id)


def jobs(queue: str, count: int) -> dict[str, int]:
    """Returns leases of new jobs."""
    return {f"{queue}-{next_ulid()}": at for at in range(count)}


class Store:
    """Answers renewals, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[ReportToWrite]]] = []
        self.answers: dict[str, Renewal] = {}
        self.away: set[str] = set()

    async def renew(self, queue: str, reports: Sequence[ReportToWrite]) -> Sequence[Renewal]:
        """Answers each as it was told to."""
        if queue in self.away:
            raise StoreUnavailable("away")
        self.calls.append((queue, [*reports]))
        return [self.answers.get(r.ulid, Renewal(lost=False)) for r in reports]


def leases_of(store: Store, *sessions: Session) -> Leases:
    """Returns the renewal of these sessions."""
    by_worker = {s.worker_id: cast(WorkerSession, s) for s in sessions}
    return Leases(by_worker, cast(Reports, store), BrokerOptions())


async def test_one_call_a_queue_renews_the_leases_of_all_workers() -> None:
    store = Store()
    held = [jobs("a", 3) | jobs("b", 2), jobs("a", 4)]
    await leases_of(store, Session("w1", held[0]), Session("w2", held[1])).renew_all()
    assert sorted((queue, len(reports)) for queue, reports in store.calls) == [("a", 7), ("b", 2)]
    asked = {(f"{q}-{r.ulid}", r.fencing_token) for q, rs in store.calls for r in rs}
    assert asked == {*(held[0] | held[1]).items()}


async def test_a_silent_workers_leases_are_left_out() -> None:
    store = Store()
    await leases_of(store, Session("w1", jobs("a", 3), renewable=False)).renew_all()
    assert not store.calls


async def test_many_leases_are_renewed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_AT_ONCE", 4)
    store = Store()
    await leases_of(store, Session("w1", jobs("a", 10))).renew_all()
    assert [len(reports) for _, reports in store.calls] == [4, 4, 2]


async def test_a_queue_that_is_away_does_not_keep_others_from_their_renewal() -> None:
    store = Store()
    store.away = {"a", "c"}
    session = Session("w1", jobs("a", 1) | jobs("b", 1) | jobs("c", 1) | jobs("d", 1))
    with pytest.raises(StoreUnavailable):
        await leases_of(store, session).renew_all()
    assert sorted(queue for queue, _ in store.calls) == ["b", "d"]
    assert not session.lost


async def test_answers_are_passed_on_to_the_session_that_holds_the_lease() -> None:
    store = Store()
    one, two = Session("w1", jobs("a", 2)), Session("w2", jobs("a", 2))
    (gone, _), (_, stopped) = one.leases.tokens, two.leases.tokens
    store.answers[gone[-26:]] = Renewal(lost=True)
    store.answers[stopped[-26:]] = Renewal(
        lost=False, cancel=CancelNotice(stopped, two.leases.tokens[stopped], "why", 1)
    )
    await leases_of(store, one, two).check_queue("a")
    assert (one.lost, one.cancelled) == ([gone], [])
    assert (two.lost, two.cancelled) == ([], [stopped])


async def test_only_what_is_held_is_asked_about() -> None:
    store = Store()
    session = Session("w1", jobs("a", 2) | jobs("b", 1))
    leases = leases_of(store, session)
    first = next(iter(session.leases.tokens))
    await leases.check("a", first[-26:] + next_ulid())
    await leases.check("a", next_ulid())
    await leases.check_queue("nobody-holds-any")
    assert [(queue, [r.ulid for r in reports]) for queue, reports in store.calls] == [
        ("a", [first[-26:]])
    ]
