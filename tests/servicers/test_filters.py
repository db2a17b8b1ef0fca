"""One filter for lists and for actions on many jobs, over one queue or several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from jobwire_server.broker import listing, matching_queues
from jobwire_server.broker.listing import MAX_CALLS

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal
from tests.support.jobs import next_ulid

S = job_pb2
QUEUES = ("a", "billing-eu", "billing-us", "mail", "mail.billing")
REVERSE = jobs.JOB_ORDER_STATE_REVERSE


async def _submit(served: Served, queue: str, **fields: Any) -> str:
    spec = job_pb2.JobSpec(**{"operation": "op", **fields})
    request = jobs.SubmitJobRequest(queue=queue, spec=spec)
    return str((await served.jobs.SubmitJob(request)).job_id)


async def _fail(served: Served, queue: str, count: int, kind: str = "Broken") -> list[str]:
    """Makes dead letters."""
    ids = [await _submit(served, queue) for _ in range(count)]
    spec = workers.WorkerSpec(worker_id=f"w-{queue}", operations=["op"], queues=[queue])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    claim = workers.ClaimJobRequest(worker_id=f"w-{queue}", max_jobs=count)
    for one in (await served.workers.ClaimJob(claim)).assignments:
        failure = job_pb2.Failure(type=kind, non_retryable=True)
        done = workers.Completion(
            job_id=one.job_id, fencing_token=one.fencing_token, failure=failure
        )
        request = workers.CompleteJobRequest(worker_id=f"w-{queue}", completion=done)
        await served.workers.CompleteJob(request)
    return ids


async def _filled(served: Served) -> dict[str, list[str]]:
    """Two live jobs and two dead letters in each queue."""
    return {
        queue: [
            *await _fail(served, queue, 2),
            await _submit(served, queue, labels={"in": queue}),
            await _submit(served, queue),
        ]
        for queue in QUEUES
    }


async def _pages(served: Served, size: int, order: int = 0, **fields: Any) -> list[list[Any]]:
    request = jobs.ListJobsRequest(filter=jobs.JobFilter(**fields), page_size=size, order_by=order)
    pages = []
    while True:
        answer = await served.jobs.ListJobs(request)
        pages.append(list(answer.jobs))
        request.page_token = answer.next_page_token
        if not request.page_token:
            return pages


async def _list(served: Served, size: int = 3, order: int = 0, **fields: Any) -> list[Any]:
    return [job for page in await _pages(served, size, order, **fields) for job in page]


async def _told(stream: Any) -> Any:
    return [answer.progress async for answer in stream][-1]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*", QUEUES),
        ("billing-*", ("billing-eu", "billing-us")),
        ("*billing*", ("billing-eu", "billing-us", "mail.billing")),
        ("*i*l*n*", ("billing-eu", "billing-us", "mail.billing")),
        ("m*l", ("mail",)),
        ("nobody*", ()),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
async def test_a_pattern_lists_the_jobs_of_its_queues_in_the_order_of_their_names(
    served: Served, monkeypatch: pytest.MonkeyPatch, pattern: str, meant: tuple[str, ...], size: int
) -> None:
    monkeypatch.setattr(matching_queues, "NAMES_AT_ONCE", 2)
    monkeypatch.setattr(matching_queues, "QUEUES_AT_ONCE", 2)
    ids = await _filled(served)
    pages = await _pages(served, size, queue=pattern)
    found = [job for page in pages for job in page]
    assert all(len(page) <= size for page in pages)
    assert sorted(job.job_id for job in found) == sorted(
        job_id for name in meant for job_id in ids[name]
    )
    assert [job.queue for job in found] == [name for name in meant for _ in range(4)]
    for at in range(0, len(found), 4):
        states = [job.state for job in found[at : at + 4]]
        assert states == [S.JOB_STATE_PENDING] * 2 + [S.JOB_STATE_FAILED] * 2
    failed = await _list(served, size, queue=pattern, states=[S.JOB_STATE_FAILED])
    assert [job.job_id for job in failed] == [
        job.job_id for job in found if job.state == S.JOB_STATE_FAILED
    ]


async def test_a_page_over_many_queues_ends_behind_a_number_of_them(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_QUEUES", 4)
    monkeypatch.setattr(matching_queues, "QUEUES_AT_ONCE", 2)
    for number in range(11):
        await served.admin.PauseQueue(
            admin.PauseQueueRequest(queue=f"q{number:02}", allow_missing=True)
        )
    job_id = await _submit(served, "q10")
    pages = await _pages(served, 5, queue="q*")
    assert [[job.job_id for job in page] for page in pages] == [[], [], [], [job_id]]


async def test_a_page_over_many_queues_costs_a_bounded_number_of_calls(served: Served) -> None:
    for number in range(60):
        await _submit(served, f"q{number:02}")
    client = served.broker.client
    before = client.info("commandstats")
    await served.jobs.ListJobs(
        jobs.ListJobsRequest(filter=jobs.JobFilter(queue="q*", operation="none"))
    )
    after = client.info("commandstats")

    def calls(stats: Mapping[str, Any]) -> int:
        return sum(
            stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")
        )

    assert calls(after) - calls(before) <= MAX_CALLS + 10
    assert await _list(served, queue="q*", operation="none") == []


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_named_jobs_are_listed_alone_in_the_same_order(served: Served, size: int) -> None:
    ids = await _filled(served)
    everything = [job.job_id for job in await _list(served, queue="*")]
    some = [*ids["mail"][1:4], *ids["a"][:3], f"a-{next_ulid()}", ids["a"][0]]
    for order, expected in ((0, everything), (REVERSE, None)):
        expected = expected or [job.job_id for job in await _list(served, 3, REVERSE, queue="*")]
        found = [job.job_id for job in await _list(served, size, order, queue="*", job_ids=some)]
        assert found == [job_id for job_id in expected if job_id in some]
    alone = await _list(served, size, queue="a", job_ids=ids["a"][::-1])
    assert [job.job_id for job in alone] == [job_id for job_id in everything if "a-0" in job_id]
    failed = await _list(served, size, queue="a", job_ids=ids["a"], states=[S.JOB_STATE_FAILED])
    assert {job.job_id for job in failed} == set(ids["a"][:2])
    other = await _list(served, size, queue="*", job_ids=some, labels={"in": "a"})
    assert [job.job_id for job in other] == [ids["a"][2]]


async def test_moments_and_types_of_failure_narrow_a_list(served: Served) -> None:
    early = await _fail(served, "a", 2)
    served.broker.shift(3_600_000)
    late = await _fail(served, "a", 2, "Odd")
    live = await _submit(served, "a")
    between = Timestamp()
    between.FromMilliseconds(served.broker.now_ms() - 1_800_000)

    async def found(**fields: Any) -> set[str]:
        return {job.job_id for job in await _list(served, queue="a", **fields)}

    assert await found(finished_after=between) == set(late)
    assert await found(finished_before=between) == set(early)
    assert await found(failure_type="Odd") == set(late)
    assert await found(submitted_before=between) == set(early + late) | {live}
    assert await found(submitted_after=between) == set()


async def test_an_order_is_the_reverse_of_the_other_in_each_state(served: Served) -> None:
    for queue in ("a", "b"):
        for at in range(4):
            await _submit(served, queue, priority=at % 2, operation=f"op{at}")
            await _submit(served, queue, delay={"seconds": 60 + at})
        await _fail(served, queue, 3)
        spec = workers.WorkerSpec(worker_id=f"x-{queue}", operations=["run"], queues=[queue])
        await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
        for _ in range(3):
            await _submit(served, queue, operation="run")
            await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id=f"x-{queue}"))
    for size in (1, 2, 100):
        forward = await _list(served, size, queue="*")
        back = await _list(served, size, REVERSE, queue="*")
        groups: dict[tuple[str, int], list[str]] = {}
        for job in forward:
            groups.setdefault((job.queue, job.state), []).append(job.job_id)
        assert [job.job_id for job in back] == [
            job_id for group in groups.values() for job_id in reversed(group)
        ]
        assert len({job.job_id for job in back}) == len(back) == 28


async def test_actions_on_many_jobs_take_patterns(served: Served) -> None:
    ids = await _filled(served)
    where = jobs.JobFilter(queue="*billing*")

    async def states(queue: str) -> list[int]:
        return [job.state for job in await _list(served, queue=queue)]

    dry = await _told(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=where, dry_run=True)))
    assert (dry.matched, dry.changed) == (6, 6)
    named = jobs.JobFilter(queue="*", job_ids=[ids["a"][0], ids["mail"][1], ids["mail"][2]])
    done = await _told(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=named)))
    assert sorted(done.sample_job_ids) == sorted([ids["a"][0], ids["mail"][1]])
    done = await _told(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=where, max_jobs=5)))
    assert (done.changed, len(done.sample_job_ids)) == (5, 5)
    assert await states("billing-us") == [S.JOB_STATE_PENDING] * 4
    done = await _told(served.jobs.CancelJobs(jobs.CancelJobsRequest(filter=where)))
    assert done.changed == 11
    purge = admin.PurgeJobsRequest(filter=jobs.JobFilter(queue="*billing-*"))
    assert (await _told(served.admin.PurgeJobs(purge))).changed == 8
    assert (await states("billing-eu"), await states("billing-us")) == ([], [])
    assert await states("mail.billing") == [S.JOB_STATE_FAILED] + [S.JOB_STATE_CANCELLED] * 3
    assert len(await states("a")) == 4
    none = jobs.RetryJobsRequest(filter=jobs.JobFilter(queue="nobody*"))
    assert (await _told(served.jobs.RetryJobs(none))).matched == 0


@pytest.mark.parametrize("pattern", ["A*", "b*/x", "*" * 5, "a*b*c*d*e*", "*" + "x" * 67, "ü*"])
async def test_what_is_no_pattern_is_refused_by_field(served: Served, pattern: str) -> None:
    where = jobs.JobFilter(queue=pattern)
    for call in (
        served.jobs.ListJobs(jobs.ListJobsRequest(filter=where)),
        _told(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=where))),
        _told(served.jobs.CancelJobs(jobs.CancelJobsRequest(filter=where))),
        _told(served.admin.PurgeJobs(admin.PurgeJobsRequest(filter=where))),
    ):
        assert (await refusal(call)).fields == {"filter.queue"}


async def test_what_a_filter_can_not_mean_is_refused_by_field(served: Served) -> None:
    watch = jobs.WatchJobsRequest(filter=jobs.JobFilter(queue="a*"))
    said = await refusal(anext(aiter(served.jobs.WatchJobs(watch))))
    assert (said.fields, "one queue" in said.message) == ({"filter.queue"}, True)
    for queue in ("a*", "ab"):
        where = jobs.JobFilter(queue=queue, job_ids=[f"b-{next_ulid()}"])
        said = await refusal(served.jobs.ListJobs(jobs.ListJobsRequest(filter=where)))
        assert said.fields == {"filter.job_ids[0]"}
    request = jobs.ListJobsRequest(order_by=99)
    assert (await refusal(served.jobs.ListJobs(request))).fields == {"order_by"}


async def test_a_token_is_good_for_its_order_and_pattern_alone(served: Served) -> None:
    await _filled(served)
    request = jobs.ListJobsRequest(filter=jobs.JobFilter(queue="*"), page_size=1)
    token = (await served.jobs.ListJobs(request)).next_page_token
    for changed in (
        jobs.ListJobsRequest(filter=jobs.JobFilter(queue="*"), order_by=REVERSE),
        jobs.ListJobsRequest(filter=jobs.JobFilter(queue="a*")),
        jobs.ListJobsRequest(
            filter=jobs.JobFilter(queue="*", job_ids=[f"a-{next_ulid()}"]),
        ),
    ):
        changed.page_token = token
        assert (await refusal(served.jobs.ListJobs(changed))).reason == "BAD_PAGE_TOKEN"
