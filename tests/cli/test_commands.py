"""The command against a real broker and worker: output, exit codes, errors."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from jobwire.v1 import worker_service_pb2, worker_service_pb2_grpc

from tests.cli.support import JOBWIRE, jobwire, read_until, running

HUGE = "9" * 20
ULID = "[0-9a-hjkmnp-tv-z]{26}"


def submit(target: str, *arguments: str) -> str:
    done = jobwire("submit", *arguments, target=target)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_submit_prints_the_id_alone(target: str) -> None:
    assert re.fullmatch(f"default-{ULID}", submit(target, "nobody", "1"))


def test_submit_says_everything_that_its_options_name(target: str) -> None:
    expires_at = f"{datetime.now(UTC).year + 2}-01-01T00:00:00Z"
    job_id = submit(
        target,
        *("nobody", '{"a": 1}', "-q", "options", "-p", "9", "-r", "gpu=a100", "-l", "x=y"),
        *("--max-attempts", "5", "--initial-backoff", "250ms", "--execution-timeout", "1m30s"),
        *("--delay", "1h", "--expires-at", expires_at),
    )
    (job,) = lines_of(jobwire("get", job_id, "--json", target=target).stdout)
    assert job["payload"] == {"a": 1}
    assert (job["queue"], job["priority"], job["state"]) == ("options", 9, "SCHEDULED")
    assert (job["requirements"], job["labels"]) == ({"gpu": "a100"}, {"x": "y"})
    assert job["execution_timeout_s"] == 90.0
    assert job["expires_at"] == expires_at
    retry = job["retry"]
    assert isinstance(retry, dict)
    assert (retry["max_attempts"], retry["initial_backoff_s"]) == (5, 0.25)


def test_the_same_id_twice_is_the_same_job(target: str) -> None:
    job_id = submit(target, "nobody", "1")
    done = jobwire("submit", "nobody", "1", "--job-id", job_id, "--json", target=target)
    found = {"job_id": job_id, "state": "PENDING", "existed": True, "forgotten": False}
    assert lines_of(done.stdout) == [found]
    other = jobwire("submit", "nobody", "2", "--job-id", job_id, target=target)
    assert other.returncode == 5
    assert "ALREADY_EXISTS" in other.stderr


def test_a_payload_comes_from_a_file_or_from_standard_input(
    busy_target: str, tmp_path: Path
) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"\x00\xff")
    done = subprocess.run(
        [*JOBWIRE, "submit", "echo", f"@{file}", "--bytes", "--wait", "--target", busy_target],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\x00\xff"
    piped = jobwire("submit", "echo", "-", "--wait", target=busy_target, stdin=b'{"b": [2]}')
    assert json.loads(piped.stdout) == {"b": [2]}


def test_wait_prints_the_result_and_exits_with_0(busy_target: str) -> None:
    done = jobwire("submit", "echo", '"ä"', "--wait", target=busy_target)
    assert (done.returncode, done.stdout) == (0, '"ä"\n')
    assert "SUCCEEDED" in done.stderr


def test_a_failed_job_exits_with_1_and_says_why(busy_target: str) -> None:
    done = jobwire("submit", "fail", "--wait", target=busy_target)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].endswith("failed: Hopeless: no use")


def test_watch_as_json_gives_the_job_at_each_change(busy_target: str) -> None:
    job_id = submit(busy_target, "fail")
    done = jobwire("watch", job_id, "--json", target=busy_target)
    jobs = lines_of(done.stdout)
    assert done.returncode == 1
    assert [job["revision"] for job in jobs] == sorted({int(str(job["revision"])) for job in jobs})
    assert jobs[-1]["state"] == "FAILED"
    assert done.stderr == ""


def test_cancel_ends_a_running_job_and_its_watch(busy_target: str) -> None:
    job_id = submit(busy_target, "wait")
    with running("watch", job_id, target=busy_target) as watch:
        read_until(watch.stderr, "waiting")
        done = jobwire("cancel", job_id, "-m", "enough", target=busy_target)
        assert done.stdout == f"{job_id} CANCELLING\n"
        assert "was cancelled: enough" in watch.rest()[1]
        assert watch.returncode == 1


def test_ctrl_c_leaves_a_watch_with_130_and_the_job_goes_on(busy_target: str) -> None:
    job_id = submit(busy_target, "wait")
    with running("watch", job_id, target=busy_target) as watch:
        read_until(watch.stderr, "waiting")
        watch.send_signal(signal.SIGINT)
        assert "Traceback" not in watch.rest()[1]
        assert watch.returncode == 130
    (job,) = lines_of(jobwire("get", job_id, "--json", target=busy_target).stdout)
    assert job["state"] == "RUNNING"
    jobwire("cancel", job_id, target=busy_target)


def test_list_filters_by_state_and_operation(target: str) -> None:
    ids = [submit(target, f"op{n}", "-q", "listed") for n in (1, 1, 2)]
    late = submit(target, "op1", "-q", "listed", "--delay", "1h")
    done = jobwire("list", "-q", "listed", "-s", "pending", "-o", "op1", "--json", target=target)
    assert [job["id"] for job in lines_of(done.stdout)] == ids[:2]
    table = jobwire("list", "-q", "listed", "-s", "SCHEDULED", target=target).stdout.splitlines()
    assert table[0].split("\t")[:3] == ["JOB", "STATE", "OPERATION"]
    assert table[1].split("\t")[:3] == [late, "SCHEDULED", "op1"]
    assert len(jobwire("list", "-q", "listed", "-n", "1", "--json", target=target).stdout) > 10


def test_the_list_of_queues_tells_what_stands_there_and_how_long_it_has_waited(target: str) -> None:
    submit(target, "nobody", "1", "-q", "counted")
    for job_id in (submit(target, "nobody", "2", "-q", "counted") for _ in range(2)):
        assert jobwire("cancel", job_id, target=target).returncode == 0
    lines = jobwire("queues", target=target).stdout.splitlines()
    (counted,) = [line for line in lines if line.startswith("counted\t")]
    row = dict(zip(lines[0].split("\t"), counted.split("\t"), strict=True))
    assert (row["PENDING"], row["SUCCEEDED"], row["FAILED"]) == ("1", "0", "0")
    assert row["OLDEST"].endswith("s")


def test_a_list_that_fails_prints_no_headings(target: str) -> None:
    done = jobwire("dead", "-q", "none", target=target)
    assert (done.returncode, done.stdout) == (3, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "nobody", "--delay", HUGE + "d"),
        ("submit", "nobody", "--deadline", HUGE + "d"),
        ("submit", "nobody", "--max-output", HUGE + "GiB"),
        ("redrive", "-q", "default", "--since", HUGE),
        ("redrive", "-q", "default", "--max-jobs", HUGE),
        ("queue", "configure", "default", "--max-pending", HUGE),
        ("queue", "configure", "default", "--retain-output", HUGE + "d"),
        ("schedules", "create", "x", "nobody", "--every", HUGE + "h"),
        ("list", "--limit", HUGE),
        ("list", "--timeout", HUGE + "ms"),
    ],
    ids=" ".join,
)
def test_a_number_beyond_all_bounds_is_refused_by_name(arguments: tuple[str, ...]) -> None:
    done = jobwire(*arguments)
    assert done.returncode == 2
    assert f"Invalid value for '{arguments[-2]}'" in done.stderr


def test_queues_are_listed_shown_paused_and_resumed(target: str) -> None:
    submit(target, "nobody", "-q", "pausable")
    paused = jobwire("queues", "pause", "pausable", "--json", target=target)
    assert lines_of(paused.stdout)[0]["paused"] is True
    shown = jobwire("queues", "show", "pausable", target=target).stdout
    assert re.search(r"delivers +no, it is paused", shown)
    listed = lines_of(jobwire("queues", "--json", target=target).stdout)
    assert {q["name"]: q["paused"] for q in listed if q["name"] == "pausable"} == {"pausable": True}
    resumed = jobwire("queues", "resume", "pausable", "--json", target=target)
    assert lines_of(resumed.stdout)[0]["paused"] is False


def test_workers_are_listed_and_shown(busy_target: str) -> None:
    submit(busy_target, "echo", "--wait")
    (worker,) = lines_of(jobwire("workers", "--json", "-s", "ready", target=busy_target).stdout)
    assert worker["operations"] == ["echo", "fail", "save", "talk", "wait"]
    shown = jobwire("workers", "show", str(worker["id"]), target=busy_target).stdout
    assert re.search(r"client +jobwire-python/", shown)
    assert re.search(r"free +\d", shown)


def test_workers_are_listed_with_what_they_can_take_and_tell(target: str) -> None:
    told = worker_service_pb2.StatusMetadata(entries={"model": "llama"})
    spec = worker_service_pb2.WorkerSpec(
        worker_id="telling", operations=["none"], concurrency=7, build_id="4f2c1"
    )
    with grpc.insecure_channel(target) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        stub.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=spec))
        stub.UpdateWorkerStatus(
            worker_service_pb2.UpdateWorkerStatusRequest(worker_id="telling", metadata=told)
        )
        columns, *rows = [
            line.split("\t") for line in jobwire("workers", target=target).stdout.splitlines()
        ]
        shown = jobwire("workers", "show", "telling", target=target).stdout
        stub.DeregisterWorker(worker_service_pb2.DeregisterWorkerRequest(worker_id="telling"))
    (row,) = [dict(zip(columns, row, strict=True)) for row in rows if row[0] == "telling"]
    assert (row["HELD"], row["FREE"]) == ("0", "7")
    assert (row["BUILD"], row["TELLS"]) == ("4f2c1", "model=llama")
    assert re.search(r"build +4f2c1\n", shown)
    assert re.search(r"tells +model=llama\n", shown)


def test_info_names_the_store(target: str) -> None:
    shown = jobwire("info", target=target).stdout
    assert re.search(r"store +valkey 9", shown)
    assert re.search(r"processes +1$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["get", "default-00000000000000000000000000"], 3, "JOB_NOT_FOUND"),
        (["queues", "show", "none"], 3, "QUEUE_NOT_FOUND"),
        (["workers", "show", "none"], 3, "`jobwire workers` lists those there are (WORKER_NOT"),
        (["list", "--timeout", "0"], 2, "'0' must be more than 0"),
        (["list", "--target", "a,b"], 2, "'a' is not HOST:PORT"),
        (["pause", "default"], 2, "There is `jobwire queues pause`"),
        (["queues", "pase", "default"], 2, "Did you mean 'pause'?"),
        (["queues", "serve"], 2, "No such command 'serve'."),
        (["submit", "x", "{bad"], 2, "line 1 column 2"),
        (["submit", "a b"], 2, "spec.operation: "),
        (["submit", "x", "--delay", "soon"], 2, "write 250ms, 10s"),
        (["submit", "x", "--label", "y"], 2, "not KEY=VALUE"),
        (["submit", "x", "@/no/such/file"], 2, "No such file"),
        (["submit", "x", "--delay", "1s", "--run-at", "2030-01-01T00:00:00Z"], 2, "not both"),
        (["worker", "no_such_module"], 2, "there is no module"),
        (["worker", "json:dumps"], 2, "not a jobwire.Worker"),
        (["worker", "json"], 2, "has no 'worker'"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    target: str, arguments: list[str], code: int, words: str
) -> None:
    done = jobwire(*arguments, target=target)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_cancelling_a_finished_job_exits_with_5(busy_target: str) -> None:
    job_id = submit(busy_target, "echo")
    jobwire("watch", job_id, target=busy_target)
    done = jobwire("cancel", job_id, target=busy_target)
    assert done.returncode == 5
    assert "WRONG_STATE" in done.stderr


def test_without_a_server_the_remedy_is_named() -> None:
    done = jobwire("list", "--target", "127.0.0.1:1", "--timeout", "300ms")
    assert done.returncode == 4
    assert "no server answers at 127.0.0.1:1: start one with `jobwire serve`" in done.stderr


def test_a_module_that_does_not_import_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("x = 1\nraise KeyError('gone')\n")
    done = subprocess.run(
        [*JOBWIRE, "worker", "broken"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "KeyError: 'gone'" in done.stderr
    assert "broken.py:2" in done.stderr


def test_a_reader_that_has_enough_is_no_error(target: str) -> None:
    for _ in range(3):
        submit(target, "nobody", "-q", "piped")
    command = ("list", "-q", "piped", "--json")
    with running(*command, target=target) as listing:
        listing.stdout.close()
        assert (listing.wait(60), listing.stderr.read()) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    done = jobwire("completion", shell)
    assert done.returncode == 0
    assert "_JOBWIRE_COMPLETE" in done.stdout


def test_completion_knows_the_commands() -> None:
    done = jobwire(
        environment={
            "_JOBWIRE_COMPLETE": "bash_complete",
            "COMP_WORDS": "jobwire wo",
            "COMP_CWORD": "1",
        }
    )
    assert done.stdout.split() == ["plain,worker", "plain,workers"]


def test_no_typing_error_leads_to_a_command_that_ends_many_jobs() -> None:
    for typed in ("pruge", "redrve", "cancl", "delet"):
        done = jobwire(typed)
        assert done.returncode == 2
        assert not re.search("Did you mean.*(purge|redrive|cancel|delete)", done.stderr)


def test_help_speaks_of_no_bounds_that_nobody_reaches() -> None:
    for command in ("list", "redrive", "queues configure"):
        assert "9223372036854775807" not in jobwire(*command.split(), "--help").stdout


def test_help_lists_the_exit_codes() -> None:
    text = jobwire("--help").stdout
    for code in (0, 1, 2, 3, 4, 5, 70, 74, 130, 143):
        assert re.search(rf"^ +{code} +\w", text, re.MULTILINE), code


def test_sigterm_ends_a_worker_with_0(target: str) -> None:
    command = ("worker", "tests.cli.handlers", "--id", "to-be-ended")
    with running(*command, target=target) as process:
        read_until(process.stderr, "worker to-be-ended")
        process.terminate()
        assert "has left" in process.rest()[1]
        assert process.returncode == 0
    assert jobwire("workers", "show", "to-be-ended", target=target).returncode == 3


def test_a_second_signal_gives_running_jobs_back_at_once(target: str) -> None:
    command = ("worker", "tests.cli.handlers", "--queue", "hurried")
    job_id = submit(target, "wait", "-q", "hurried")
    with running(*command, target=target) as process:
        with running("watch", job_id, target=target) as watch:
            read_until(watch.stderr, "waiting")
        process.terminate()
        read_until(process.stderr, "told to stop: finishing")
        process.terminate()
        assert "told to stop again" in process.rest()[1]
        assert process.returncode == 0
    (job,) = lines_of(jobwire("get", job_id, "--json", target=target).stdout)
    assert (job["state"], job["interruptions"], job["failures"]) == ("PENDING", 1, 0)
