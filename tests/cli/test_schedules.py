"""Recurring jobs at the command line, against a real broker."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cli.support import jobwire


def made(target: str, *arguments: str) -> dict[str, Any]:
    """Make a schedule and return it."""
    done = jobwire("schedules", "create", *arguments, "--json", target=target)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def shown(target: str, schedule_id: str, *options: str) -> dict[str, Any]:
    done = jobwire("schedules", "get", schedule_id, "--json", *options, target=target)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_schedule_is_made_with_all_that_its_options_name(target: str) -> None:
    found = made(
        target,
        *("nightly", "report.build", '{"kind": "daily"}', "-q", "all"),
        *("--cron", "30 6 * * MON-FRI", "-z", "Europe/Berlin", "--description", "for the board"),
        *("--missed", "run-all", "--catch-up-window", "2h", "--overlap", "cancel-previous"),
        *("--spread", "30s", "-p", "3", "-l", "team=a", "--max-attempts", "2"),
        *("--execution-timeout", "10m", "--unique-key", "report", "--retention", "1d"),
        *("--expires-after", "1h", "--deadline", "2h"),
    )
    assert (found["expires_after_s"], found["deadline_s"]) == (3600, 7200)
    assert (found["cron"], found["time_zone"]) == ("30 6 * * MON-FRI", "Europe/Berlin")
    assert (found["missed"], found["catch_up_window_s"]) == ("run_all", 7200)
    assert (found["overlap"], found["jitter_s"]) == ("cancel_previous", 30)
    assert (found["priority"], found["labels"]) == (3, {"team": "a"})
    assert (found["payload"], found["description"]) == ({"kind": "daily"}, "for the board")
    assert (found["execution_timeout_s"], found["retention_s"]) == (600, 86400)
    assert found["retry"]["max_attempts"] == 2
    assert found["unique_key"]["key"] == "report"
    assert len(found["next_runs"]) == 5


def test_moments_are_shown_in_the_zone_of_the_schedule(target: str) -> None:
    made(target, "tokyo", "work", "-q", "zones", "--cron", "0 9 * * *", "-z", "Asia/Tokyo")
    text = jobwire("schedules", "get", "tokyo", "-q", "zones", target=target).stdout
    assert len(re.findall(r"\d{4}-\d\d-\d\d 09:00:00 JST \(in ", text)) == 5
    (row,) = jobwire("schedules", "-q", "zones", target=target).stdout.splitlines()[1:]
    cells = row.split("\t")
    assert cells[:3] == ["tokyo", "work", "0 9 * * * Asia/Tokyo"]
    assert " 09:00:00 JST (in " in cells[3]


def test_a_schedule_is_triggered_and_remembers_it(target: str) -> None:
    made(target, "byhand", "work", "-q", "hand", "--every", "1h")
    done = jobwire("schedules", "trigger", "byhand", "-q", "hand", target=target)
    job_id = done.stdout.strip()
    assert job_id.startswith("hand-")
    found = shown(target, "byhand", "-q", "hand")
    assert (found["total_runs"], found["recent_runs"][0]["job_id"]) == (1, job_id)
    text = jobwire("schedules", "get", "byhand", "-q", "hand", target=target).stdout
    assert re.search(rf"{job_id}\t.*\ttrigger", text)
    (job,) = jobwire(
        "list", "-q", "hand", "-l", "jobwire.schedule=byhand", "--json", target=target
    ).stdout.splitlines()
    assert json.loads(job)["id"] == job_id


def test_a_change_keeps_the_rest_and_a_removal_takes_away(target: str) -> None:
    made(
        target,
        *("changed", "work", "-q", "c", "--cron", "@daily", "-z", "Europe/Berlin"),
        *("--description", "old", "-p", "5"),
    )
    done = jobwire(
        *("schedules", "update", "changed", "-q", "c", "--cron", "@hourly"),
        *("--payload", "[1]", "--remove", "description", "--json"),
        target=target,
    )
    found = json.loads(done.stdout)
    assert (found["cron"], found["time_zone"], found["priority"]) == ("@hourly", "Europe/Berlin", 5)
    assert (found["payload"], found["description"], found["revision"]) == ([1], "", 2)


def test_a_schedule_is_paused_with_a_reason_resumed_and_removed(target: str) -> None:
    made(target, "resting", "work", "-q", "r", "--every", "5m", "--paused")
    listed = jobwire("schedules", "list", "-q", "r", target=target).stdout
    assert listed.splitlines()[1].split("\t")[2:4] == ["every 5m", "paused"]
    assert jobwire("schedules", "resume", "resting", "-q", "r", target=target).returncode == 0
    assert len(shown(target, "resting", "-q", "r")["next_runs"]) == 5
    paused = jobwire("schedule", "pause", "resting", "-q", "r", "-m", "holidays", target=target)
    assert re.search(r"paused +yes: holidays", paused.stdout)
    assert jobwire("schedules", "delete", "resting", "-q", "r", target=target).returncode == 0
    assert jobwire("schedules", "get", "resting", "-q", "r", target=target).returncode == 3
    assert jobwire("schedules", "delete", "resting", "-q", "r", target=target).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "x", "y"], 2, "give --cron '30 6 * * *' or --every 1h"),
        (["create", "x", "y", "--cron", "@daily", "--every", "1h"], 2, "not both"),
        (["create", "x", "y", "--every", "1h", "-z", "UTC"], 2, "--time-zone goes with --cron"),
        (["create", "x", "y", "--cron", "99 * * * *"], 2, "spec.cron.expression"),
        (["create", "x", "y", "--cron", "0 0 30 2 *"], 2, "never due"),
        (["create", "x", "y", "--cron", "@daily", "-z", "Mars/Base"], 2, "time_zone"),
        (["get", "none"], 3, "SCHEDULE_NOT_FOUND"),
        (["update", "none", "--every", "1h"], 3, "SCHEDULE_NOT_FOUND"),
        (["update", "none"], 2, "name something to change"),
        (["trigger", "none"], 3, "SCHEDULE_NOT_FOUND"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(
    target: str, arguments: list[str], code: int, words: str
) -> None:
    done = jobwire("schedules", *arguments, target=target)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_completion_knows_the_commands_of_a_group() -> None:
    done = jobwire(
        environment={
            "_JOBWIRE_COMPLETE": "bash_complete",
            "COMP_WORDS": "jobwire schedules p",
            "COMP_CWORD": "2",
        }
    )
    assert done.stdout.split() == ["plain,pause"]
