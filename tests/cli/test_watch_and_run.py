"""Following jobs at the command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from jobwire import Client

from tests.cli.support import Running, jobwire, running


def test_run_puts_output_and_messages_where_a_local_command_does(busy_target: str) -> None:
    done = jobwire("run", "talk", target=busy_target)
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert "err\n" in done.stderr
    with_result = jobwire("run", "talk", "--result", target=busy_target)
    assert with_result.stdout == 'out\n"said"\n'


def test_run_exits_with_the_outcome(busy_target: str) -> None:
    done = jobwire("run", "fail", target=busy_target)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Hopeless: no use" in done.stderr


@contextmanager
def _run_until_output(target: str, *options: str) -> Iterator[tuple[Running, str]]:
    arguments = ("run", "talk", '"wait"', *options)
    with running(*arguments, target=target) as process:
        assert process.stdout.readline() == "out\n"
        yield process, process.stderr.readline().split()[-1]


def test_an_interrupt_leaves_the_job_to_itself(busy_target: str) -> None:
    with _run_until_output(busy_target) as (process, job_id):
        process.send_signal(signal.SIGINT)
        _, said = process.rest()
    assert process.returncode == 130
    assert f"jobwire watch {job_id}" in said
    with Client(busy_target) as client:
        assert client.get(job_id).state == "RUNNING"
        client.cancel(job_id)


def test_an_interrupt_cancels_the_job_that_was_not_to_outlive_the_command(
    busy_target: str,
) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        with _run_until_output(busy_target, "--cancel-on-exit") as (process, job_id):
            process.send_signal(number)
            process.rest()
        assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
        with Client(busy_target) as client:
            assert client.job(job_id).wait(timeout=60).state == "CANCELLED"


def test_watch_shows_output_apart_from_the_result(busy_target: str) -> None:
    with Client(busy_target) as client:
        handle = client.submit("talk")
        handle.result(timeout=60)
    watched = jobwire("watch", handle.id, target=busy_target)
    assert watched.stdout == '"said"\n'
    assert "out\nerr\n" in watched.stderr
    only = jobwire("watch", handle.id, "--output-only", target=busy_target)
    assert (only.returncode, only.stdout, only.stderr) == (0, "out\n", "err\n")
    from_end = jobwire("watch", handle.id, "--output-only", "--from-end", target=busy_target)
    assert (from_end.stdout, from_end.stderr) == ("", "")
    lines = jobwire("watch", handle.id, "--json", target=busy_target).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["output"]["content"] for e in events if "output" in e] == ["out\n", "err\n"]
    assert events[-1]["state"] == "SUCCEEDED"


def test_a_queue_is_configured(busy_target: str) -> None:
    jobwire("run", "talk", target=busy_target)
    done = jobwire(
        *("queues", "configure", "default", "--event-log", "100", "--max-output", "1GiB", "--json"),
        target=busy_target,
    )
    config = json.loads(done.stdout)["config"]
    assert (config["event_log_entries"], config["max_output_bytes"]) == (100, 1 << 30)
