"""What callers send and the server refuses does not stay in its memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
import pytest

from jobwire.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc

from tests.support.servers import ServerProcess

CALLS, BYTES = 150, 950_000
MOST_GROWTH = 64 << 20
"""It is some 12 MB; where they wait for the garbage collector, 430: the 142 sent, and copies."""


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_payloads_of_refused_calls_do_not_stay_in_memory(tmp_path: Path) -> None:
    server = ServerProcess("--max-payload", "900KiB", data_dir=tmp_path)
    try:
        server.start()
        assert server.process is not None
        before = _resident(server.process.pid)
        payload = job_pb2.Payload(json='"' + "x" * BYTES + '"')
        request = job_service_pb2.SubmitJobRequest(
            spec=job_pb2.JobSpec(operation="nobody", payload=payload)
        )
        with grpc.insecure_channel(server.address) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)
            for _ in range(CALLS):
                with pytest.raises(grpc.RpcError, match="payload"):
                    stub.SubmitJob(request, timeout=30)
        assert _resident(server.process.pid) - before < MOST_GROWTH
    finally:
        server.stop()
