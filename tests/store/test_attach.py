"""The attachment of a worker's stream as one call of the store."""

from __future__ import annotations

import pytest

from jobwire_server.model import WorkerStatus

from tests.support.jobs import worker_spec
from tests.support.scripts import Scripts


@pytest.mark.parametrize("before", [(), ("old",), ("new",)])
async def test_a_repeated_attachment_is_told_the_same_about_the_former_process(
    scripts: Scripts, before: tuple[str, ...]
) -> None:
    for number, instance in enumerate(before):
        await scripts.workers.attach(worker_spec(), f"s1/{number}", instance, "s1")
    first = await scripts.workers.attach(worker_spec(), "s1/9", "new", "s1")
    assert (first.same_process, first.other_process) == (before == ("new",), before == ("old",))
    # The answer was lost, and the call is made again as it was.
    again = await scripts.workers.attach(worker_spec(), "s1/9", "new", "s1")
    assert again[1:] == first[1:]


async def test_a_repeated_attachment_keeps_what_an_operator_asked_for_meanwhile(
    scripts: Scripts,
) -> None:
    await scripts.workers.attach(worker_spec(), "s1/1", "new", "s1")
    await scripts.workers.set_status("w1", WorkerStatus.DRAINING)
    again = await scripts.workers.attach(worker_spec(), "s1/1", "new", "s1")
    assert again.status is WorkerStatus.DRAINING


async def test_a_later_attachment_is_not_taken_for_a_repeated_one(scripts: Scripts) -> None:
    await scripts.workers.attach(worker_spec(), "s1/1", "a", "s1")
    assert (await scripts.workers.attach(worker_spec(), "s1/2", "b", "s1")).other_process
    assert (await scripts.workers.attach(worker_spec(), "s1/3", "b", "s1")).same_process
    assert (await scripts.workers.attach(worker_spec(), "s1/4", "c", "s1")).other_process
