"""The demo's worker: checksum, line count and compressed size of a file."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

from jobwire import Context, Fatal, Worker

CHUNK_BYTES = 256 << 10

worker = Worker(queues=["files"], concurrency=max(2, os.cpu_count() or 2))


# A thread is enough for this CPU work: hashlib and zlib let other threads run meanwhile.
@worker.operation("file.measure", run="thread")
def measure(context: Context) -> dict[str, str | int]:
    path = Path(context.payload["path"])
    sha256, deflate = hashlib.sha256(), zlib.compressobj()
    size = lines = compressed = 0
    try:
        expected = path.stat().st_size or 1
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                context.raise_if_cancelled()
                sha256.update(chunk)
                lines += chunk.count(b"\n")
                compressed += len(deflate.compress(chunk))
                size += len(chunk)
                context.progress(size / expected, path.name)
    except OSError as error:
        # A retry would not help.
        raise Fatal(f"{path}: {error.strerror}", type=type(error).__name__) from error
    compressed += len(deflate.flush())
    return {
        "sha256": sha256.hexdigest(),
        "bytes": size,
        "lines": lines,
        "compressed_bytes": compressed,
    }
