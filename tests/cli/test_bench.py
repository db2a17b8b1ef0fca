"""`jobwire bench` against a real broker."""

from __future__ import annotations

import json
import signal

import pytest

from jobwire import Client, JobState

from tests.cli.support import jobwire, read_until, running
from tests.support.stores import free_port

QUEUE = "jobwire-bench-test"
SMALL = ("bench", "--name", "test", "--jobs", "60", "--payload", "64")


def test_bench_says_how_fast_jobs_are_taken_and_done(target: str) -> None:
    done = jobwire(*SMALL, "--json", target=target)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["jobs"], result["payload_bytes"], result["batch"]) == (60, 64, 100)
    assert result["submitted_per_s"] >= result["done_per_s"] > 0
    for kind in (
        *("start_latency", "done_latency", "idle_start_latency", "idle_done_latency"),
        *("submit_one_latency", "call_latency", "calls_latency"),
    ):
        latency = result[kind]
        assert 0 <= latency["p50_s"] <= latency["p90_s"] <= latency["p99_s"] <= latency["most_s"]
    assert result["done_latency"]["most_s"] >= result["start_latency"]["p50_s"]
    assert result["submit_one_latency"]["p50_s"] > 0  # by a clock that has more than milliseconds
    assert result["submit_one_per_s"] > 0
    assert result["calls_per_s"] > 0
    assert result["calls_in_flight"] == 100


def test_bench_prints_a_table_and_takes_single_calls(target: str) -> None:
    done = jobwire(*SMALL, "--batch", "1", "--in-flight", "20", target=target)
    assert done.returncode == 0, done.stderr
    assert "60 jobs of 64 bytes, 1 a call, 20 calls at once" in done.stdout
    for words in (
        *("submitted  ", "done       ", "one by one ", "calls      "),
        *("LATENCY", "to done, one by one", "submit, one by one", "call, 100 at once"),
    ):
        assert words in done.stdout


def test_bench_forgets_its_jobs_and_touches_no_other_queue(target: str) -> None:
    with Client(target) as client:
        other = client.submit("jobwire.bench", {"n": 1}, queue="beside").id
        before = client.queue("beside")
        assert jobwire(*SMALL, target=target).returncode == 0
        assert client.queue(QUEUE).counts == {}
        after = client.queue("beside")
        assert (after.counts, after.totals) == (before.counts, before.totals)
        assert client.get(other).state is JobState.PENDING
        client.cancel(other)


def test_bench_says_what_the_server_refuses(target: str) -> None:
    done = jobwire(*SMALL, "--payload", "2MiB", target=target)
    assert done.returncode == 2, done.stderr
    assert "spec.payload: has 20971" in done.stderr


def test_bench_leaves_a_queue_alone_that_holds_jobs(target: str) -> None:
    with Client(target) as client:
        handle = client.submit("something", None, queue=QUEUE)
        done = jobwire(*SMALL, target=target)
        assert done.returncode == 1
        assert f"{QUEUE} holds jobs (1 PENDING)" in done.stderr
        assert client.get(handle.id).state is JobState.PENDING
        client.cancel(handle.id)
        client.purge_jobs(QUEUE).wait()


def test_bench_that_is_interrupted_forgets_its_jobs(target: str) -> None:
    with running(*SMALL, "--jobs", "1000000", target=target) as process:
        read_until(process.stderr, "full speed")
        process.send_signal(signal.SIGINT)
        process.rest()
    assert process.returncode == 130
    with Client(target) as client:
        assert client.queue(QUEUE).counts == {}


def test_bench_resumes_its_queue_that_a_killed_one_left_paused(target: str) -> None:
    with Client(target) as client:
        client.pause(QUEUE, allow_missing=True)
        assert jobwire(*SMALL, target=target).returncode == 0
        assert not client.queue(QUEUE).paused


def test_bench_without_a_server_says_so() -> None:
    done = jobwire(*SMALL, "--timeout", "1s", target=f"127.0.0.1:{free_port()}")
    assert done.returncode == 4
    assert "no server answers" in done.stderr


@pytest.mark.parametrize("option", [("--jobs", "0"), ("--batch", "501"), ("--payload", "x")])
def test_bench_refuses_what_is_out_of_range(option: tuple[str, str]) -> None:
    done = jobwire("bench", *option)
    assert done.returncode == 2
    assert option[0].removeprefix("--") in done.stderr
