"""What a worker says about a job is recorded in the order in which it says it."""

from __future__ import annotations

from jobwire.v1.job_pb2 import JOB_STATE_SUCCEEDED, OutputChunk, Progress
from jobwire.v1.worker_service_pb2 import Report

from tests.support.streams import Producer, RawWorker, StreamServer, completion


async def test_last_words_are_recorded_before_the_end_however_they_are_sent(
    server: StreamServer, producer: Producer
) -> None:
    job_ids = await producer.submit(40)
    async with RawWorker(server.address, credits=40) as worker:
        await worker.attach()
        sequences = []
        for number, job in enumerate(await worker.jobs(40)):
            words = Report(
                job_id=job.job_id,
                fencing_token=job.fencing_token,
                progress=Progress(fraction=1),
                output=[OutputChunk(text="bye")],
            )
            if number % 2:
                sequences.append(await worker.post([completion(job)], reports=[words]))
            else:
                sequences.append(await worker.post([], reports=[words]))
                sequences.append(await worker.post([completion(job)]))
        for sequence in sequences:
            assert not (await worker.receipt(sequence)).refused
    for job_id in job_ids:
        job = await producer.job(job_id)
        assert (job.state, job.output_bytes) == (JOB_STATE_SUCCEEDED, 3)
