"""Failed jobs at the command line: dead letters, redrives, cancellations of many, purges."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from typing import Any

import pytest

from tests.cli.support import JOBWIRE, jobwire


def submit(target: str, *arguments: str) -> str:
    done = jobwire("submit", *arguments, target=target)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def job(target: str, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(jobwire("get", job_id, "--json", target=target).stdout)
    return found


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def failed(target: str, queue: str, *options: str) -> str:
    """Submit a job that fails for good, and wait for that."""
    job_id = submit(target, "fail", "-q", queue, *options)
    assert jobwire("watch", job_id, target=target).returncode == 1
    return job_id


def at_a_terminal(*arguments: str, target: str, answer: str) -> tuple[int, str]:
    """Run a command as if a person sat before it, who answers its question."""
    person, terminal = pty.openpty()
    process = subprocess.Popen(
        [*JOBWIRE, *arguments, "--target", target],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    seen = ""
    try:
        while "? [y/N]" not in seen:
            seen += os.read(person, 1000).decode()
        os.write(person, answer.encode() + b"\n")
        output, _ = process.communicate(timeout=60)
    finally:
        os.close(person)
        process.kill()
        process.communicate()
    return process.returncode, seen + output


def test_attempts_are_listed_newest_first(busy_target: str) -> None:
    job_id = failed(busy_target, "default")
    done = jobwire("attempts", job_id, target=busy_target)
    header, row = done.stdout.splitlines()
    assert header.split("\t") == ["ATTEMPT", "OUTCOME", "STARTED", "TOOK", "WORKER", "WHY"]
    cells = row.split("\t")
    assert (cells[0], cells[1], cells[5]) == ("1", "FAILED", "Hopeless: no use")
    (line,) = jobwire("attempts", job_id, "--json", target=busy_target).stdout.splitlines()
    assert json.loads(line)["failure"]["origin"] == "WORKER"


def test_dead_letters_are_listed_with_what_went_wrong(busy_target: str) -> None:
    job_id = failed(busy_target, "default", "-l", "customer=7")
    failed(busy_target, "default")
    done = jobwire(
        "dead",
        "-l",
        "customer=7",
        "-f",
        "Hopeless",
        "--failure-origin",
        "worker",
        target=busy_target,
    )
    header, row = done.stdout.splitlines()
    assert header.split("\t") == ["JOB", "OPERATION", "FAILURE", "MESSAGE", "FAILED", "ATTEMPTS"]
    cells = row.split("\t")
    assert cells[:4] == [job_id, "fail", "Hopeless", "no use"]
    assert cells[5] == "1"
    for others in (("-f", "Other"), ("--failure-origin", "broker")):
        # Other tests leave jobs there too.
        mine = ("--json", "-l", "customer=7")
        assert jobwire("dead", *others, *mine, target=busy_target).stdout == ""


def test_get_shows_stacks_checkpoint_redrive_and_key(busy_target: str) -> None:
    job_id = submit(busy_target, "save", '"x"', "--max-attempts", "1", "--unique-key", "show-1")
    jobwire("watch", job_id, target=busy_target)
    jobwire("retry", job_id, "-m", "try again", target=busy_target)
    jobwire("watch", job_id, target=busy_target)
    shown = jobwire("get", job_id, target=busy_target).stdout
    assert re.search(r'checkpoint +{"half": "x"}', shown)
    assert re.search(r"redriven +once, last .* out of FAILED: try again", shown)
    assert re.search(r"unique key +show-1 \(unfinished, return existing\)", shown)
    assert re.search(r"retry +1 attempt\n", shown)
    assert "attempt 1:\n  Traceback" in shown
    assert "attempt 2:\n  Traceback" in shown or "attempt 2: as in attempt 1" in shown


def test_retry_puts_a_job_back_and_says_its_state(busy_target: str) -> None:
    job_id = failed(busy_target, "default")
    done = jobwire("retry", job_id, "--delay", "1h", "-m", "mended", target=busy_target)
    assert done.stdout == f"{job_id} SCHEDULED\n"
    found = job(busy_target, job_id)
    assert found["last_redrive"]["reason"] == "mended"
    assert found["failures"] == 0
    assert jobwire("cancel", job_id, target=busy_target).stdout == f"{job_id} CANCELLED\n"


def test_retrying_a_job_that_succeeded_exits_with_5(busy_target: str) -> None:
    job_id = submit(busy_target, "echo", "1")
    jobwire("watch", job_id, target=busy_target)
    done = jobwire("retry", job_id, target=busy_target)
    assert done.returncode == 5
    assert "WRONG_STATE" in done.stderr


def cancelled(target: str, queue: str, count: int = 2) -> list[str]:
    """Jobs that nobody ran and somebody cancelled."""
    ids = [submit(target, "nobody", "-q", queue, "-l", f"n={n}") for n in range(count)]
    jobwire("cancel", *ids, target=target)
    return ids


def test_a_redrive_counts_and_then_acts(target: str) -> None:
    ids = cancelled(target, "redriven")
    counted = jobwire("redrive", "-q", "redriven", "-s", "cancelled", "--dry-run", target=target)
    assert counted.stdout == "2 jobs would be redriven\n"
    assert job(target, ids[0])["state"] == "CANCELLED"
    one = jobwire(
        *("redrive", "-q", "redriven", "-s", "cancelled", "-l", "n=1", "-m", "again", "--json"),
        target=target,
    )
    assert last_line(one.stdout)["changed"] == 1
    assert [job(target, each)["state"] for each in ids] == ["CANCELLED", "PENDING"]
    rest = jobwire("redrive", "-q", "redriven", "-s", "cancelled", "--since", "1h", target=target)
    assert rest.stdout == "1 job redriven\n"
    none = jobwire("redrive", "-q", "redriven", target=target)
    assert (none.returncode, none.stdout) == (0, "no job matches\n")


def test_on_a_terminal_a_redrive_asks_first(target: str) -> None:
    ids = cancelled(target, "asked")
    command = ("redrive", "-q", "asked", "-s", "cancelled")
    code, seen = at_a_terminal(*command, target=target, answer="n")
    assert code == 130
    assert "Redrive 2 jobs? [y/N]" in seen
    assert job(target, ids[0])["state"] == "CANCELLED"
    code, seen = at_a_terminal(*command, target=target, answer="y")
    assert code == 0
    assert "2 jobs redriven" in seen
    assert job(target, ids[0])["state"] == "PENDING"


def test_all_live_jobs_that_match_are_cancelled(target: str) -> None:
    kept = submit(target, "other", "-q", "many")
    for _ in range(3):
        submit(target, "nobody", "-q", "many")
    done = jobwire("cancel", "-q", "many", "-o", "nobody", "-m", "enough", target=target)
    assert done.stdout == "3 jobs cancelled\n"
    assert job(target, kept)["state"] == "PENDING"


def test_a_purge_wants_a_yes_where_it_can_not_ask(target: str) -> None:
    (job_id,) = cancelled(target, "purged", 1)
    refused = jobwire("purge", "-q", "purged", target=target)
    assert refused.returncode == 2
    assert "give --yes" in refused.stderr
    assert jobwire("purge", "-q", "purged", "-n", "5", "-y", target=target).stdout == (
        "1 job purged\n"
    )
    assert jobwire("get", job_id, target=target).returncode == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["redrive"], 2, "Missing option '--queue'"),
        (["redrive", "-q", "nowhere"], 3, "QUEUE_NOT_FOUND"),
        (["redrive", "-q", "x", "-s", "running"], 2, "is not one of"),
        (["redrive", "-q", "x", "--since", "lately"], 2, "neither a time nor a duration"),
        (["cancel"], 2, "give job ids, or --queue"),
        (["cancel", "a", "-q", "b"], 2, "not both"),
        (["submit", "x", "--on-conflict", "reject"], 2, "need --unique-key"),
        (["submit", "x", "--unique-key", "k", "--unique-scope", "period"], 2, "--unique-period"),
        (["submit", "x", "--deadline", "2020-01-01T00:00:00Z"], 2, "spec.deadline"),
        (["queue", "configure", "x", "--no-retry", "--jitter", "1"], 2, "contradicts the other"),
    ],
)
def test_mistakes_are_told_with_the_remedy(
    target: str, arguments: list[str], code: int, words: str
) -> None:
    done = jobwire(*arguments, target=target)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_submission_may_say_who_it_is(target: str) -> None:
    options = ("-q", "known", "--unique-key", "k", "--retention", "1h", "--deadline", "1h")
    more = ("--expires-after", "30m", "--header", "traceparent=00-1")
    more += ("--require-feature", "headers")
    job_id = submit(target, "nobody", *options, *more)
    again = jobwire("submit", "nobody", "-q", "known", "--unique-key", "k", target=target)
    assert again.stdout.strip() == job_id
    assert "exists already" in again.stderr
    refused = jobwire(
        *("submit", "nobody", "-q", "known", "--unique-key", "k", "--on-conflict", "reject"),
        target=target,
    )
    assert refused.returncode == 5
    assert job_id in refused.stderr
    first = submit(target, "nobody", "-q", "known", "--request-id", "r-1")
    assert submit(target, "nobody", "-q", "known", "--request-id", "r-1") == first
    found = job(target, job_id)
    assert (found["unique_key"]["key"], found["retention_s"]) == ("k", 3600)
    assert None not in (found["deadline"], found["expires_at"])
    assert found["headers"] == {"traceparent": "00-1"}
    twice = ("--expires-after", "1h", "--expires-at", "2100-01-01T00:00:00Z")
    assert jobwire("submit", "nobody", *twice, target=target).returncode == 2


def test_what_the_broker_found_is_told_from_what_a_worker_said(target: str) -> None:
    done = jobwire("submit", "nobody", "--deadline", "100ms", "--wait", target=target)
    assert done.returncode == 1
    assert "DEADLINE_EXCEEDED (broker): the job was not finished" in done.stderr


def test_jobs_of_several_queues_are_listed_and_cancelled_by_a_pattern(target: str) -> None:
    ids = [submit(target, "nobody", "-q", f"wide-{name}") for name in ("a", "b", "b")]
    for words, expected in (
        (("jobs", "--queue", "wide-*", "--state", "pending"), ids),
        (("list", "-q", "w*-b", "--reverse"), ids[:0:-1]),
        (("list", "-q", "wide-*", "--before", "1h"), []),
        (("dead", "-q", "wide-*"), []),
    ):
        listed = jobwire(*words, "--json", target=target)
        assert listed.returncode == 0, listed.stderr
        assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == expected
    done = jobwire("cancel", "--queue", "wide-*", "--yes", "--json", target=target)
    assert json.loads(done.stdout.splitlines()[-1])["changed"] == 3
    said = jobwire("list", "-q", "wide-*-*-*-*-*", target=target)
    assert (said.returncode, "at most 4 times" in said.stderr) == (2, True)


def test_a_queue_is_configured_and_shown(target: str) -> None:
    submit(target, "nobody", "-q", "tuned")
    done = jobwire(
        *("queue", "configure", "tuned", "--max-pending", "7", "--retain-succeeded", "2h"),
        *("--max-attempts", "9", "--max-ended-bytes", "1MiB", "--priority-ageing", "10m", "--json"),
        target=target,
    )
    config = json.loads(done.stdout)["config"]
    assert (config["max_pending_jobs"], config["retain_succeeded_s"]) == (7, 7200)
    assert (config["retry"]["max_attempts"], config["max_ended_bytes"]) == (9, 1 << 20)
    assert config["priority_ageing_s"] == 600
    shown = jobwire("queue", "show", "tuned", target=target).stdout
    assert re.search(r"takes +at most 7 waiting jobs", shown)
    assert re.search(r"keeps succeeded +for 2h", shown)
    assert re.search(r"retry +9 attempts", shown)
    (revision,) = re.findall(r"revision +(\d+)", shown)
    again = ("queues", "configure", "tuned", "--multiplier", "3", "--revision", revision)
    retry = json.loads(jobwire(*again, "--json", target=target).stdout)["config"]["retry"]
    assert (retry["max_attempts"], retry["multiplier"]) == (9, 3)
    stale = jobwire(*again[:-3], "4", "--revision", revision, target=target)
    assert stale.returncode == 5
    assert "revision" in stale.stderr
    taken = jobwire(
        *("queues", "configure", "tuned", "--retain-succeeded", "default", "--no-retry", "--json"),
        target=target,
    )
    config = json.loads(taken.stdout)["config"]
    assert config["retain_succeeded_s"] is None
    assert config["retry"]["max_attempts"] is None


def test_a_queue_is_configured_and_paused_before_its_first_job(target: str) -> None:
    for words in (("configure", "early", "--default-priority", "9"), ("pause", "later")):
        said = jobwire("queues", *words, target=target)
        assert (said.returncode, "no queue" in said.stderr) == (3, True)
        made = jobwire("queues", *words, "--create", "--json", target=target)
        assert json.loads(made.stdout)["name"] == words[1]
    shown = jobwire("queue", "show", "early", target=target).stdout
    assert re.search(r"priority +9 unless", shown)
    assert re.search(r"delivers +no", jobwire("queue", "show", "later", target=target).stdout)
    unsure = jobwire("queues", "delete", "later", target=target)
    assert (unsure.returncode, "--yes" in unsure.stderr) == (2, True)
    job_id = submit(target, "nobody", "-q", "later")
    held = jobwire("queues", "delete", "later", "--yes", target=target)
    assert (held.returncode, "1 live jobs" in held.stderr) == (5, True)
    jobwire("cancel", job_id, target=target)
    assert jobwire("queues", "delete", "later", "--yes", target=target).stdout == "deleted later\n"
    assert jobwire("queues", "show", "later", target=target).returncode == 3
