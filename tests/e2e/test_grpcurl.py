"""grpcurl, with no proto file: whoever has a terminal can use the broker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ServerProcess


def _grpcurl() -> str:
    found = shutil.which("grpcurl")
    if found is None and shutil.which("go"):
        path = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True)
        found = shutil.which("grpcurl", path=str(Path(path.stdout.strip()) / "bin"))
    if found is None:
        pytest.skip("no grpcurl: go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest")
    return found


@pytest.fixture
def grpcurl(tmp_path: Path, start_server: Callable[..., ServerProcess]) -> Callable[..., Any]:
    """Calls the methods of a fresh broker."""
    program = _grpcurl()
    server = start_server(data_dir=tmp_path)

    def call(*arguments: str, data: dict[str, Any] | None = None) -> str:
        flags = ["-plaintext", "-max-time", "20"]
        if data is not None:
            flags += ["-d", json.dumps(data)]
        # Flags, address, then what to call.
        done = subprocess.run(
            [program, *flags, server.address, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def _read(text: str) -> dict[str, Any]:
    """Reads an answer; a field may be written `job_id` or `jobId`, as JSON allows."""

    def snake(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name): v for name, v in pairs}

    found: dict[str, Any] = json.loads(text, object_pairs_hook=snake)
    return found


def test_a_job_is_submitted_claimed_completed_and_watched_with_grpcurl(
    grpcurl: Callable[..., str],
) -> None:
    services = grpcurl("list").split()
    assert {
        "jobwire.v1.AdminService",
        "jobwire.v1.JobService",
        "jobwire.v1.WorkerService",
        "grpc.health.v1.Health",
    } <= set(services)
    assert "rpc SubmitJob" in grpcurl("describe", "jobwire.v1.JobService")
    serving = grpcurl("grpc.health.v1.Health/Check", data={})
    assert json.loads(serving) == {"status": "SERVING"}

    spec = {"operation": "image.thumbnail", "payload": {"json": '{"width": 120}'}, "priority": 3}
    submitted = _read(grpcurl("jobwire.v1.JobService/SubmitJob", data={"spec": spec}))
    job_id = submitted["job_id"]
    assert submitted["state"] == "JOB_STATE_PENDING"
    worker = {"worker_id": "terminal", "operations": ["image.thumbnail"]}
    grpcurl("jobwire.v1.WorkerService/RegisterWorker", data={"worker": worker})
    claim = {"worker_id": "terminal", "wait": "5s"}
    claimed = _read(grpcurl("jobwire.v1.WorkerService/ClaimJob", data=claim))
    (assignment,) = claimed["assignments"]
    assert assignment["job_id"] == job_id
    assert assignment["spec"]["payload"] == {"json": '{"width": 120}'}
    completion = {
        "job_id": job_id,
        "fencing_token": assignment["fencing_token"],
        "success": {"result": {"json": '"done"'}},
    }
    done = grpcurl(
        "jobwire.v1.WorkerService/CompleteJob",
        data={"worker_id": "terminal", "completion": completion},
    )
    assert json.loads(done)["state"] == "JOB_STATE_SUCCEEDED"
    watched = json.loads(grpcurl("jobwire.v1.JobService/WatchJob", data={"job_id": job_id}))
    assert watched["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert watched["job"]["result"] == {"json": '"done"'}
