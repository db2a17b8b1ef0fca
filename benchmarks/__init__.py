"""Benchmarks: `python -m benchmarks NAME [--json]`. docs/benchmarks.md has method and results."""

import os

# Read when grpc is first imported: no lines about connections that a benchmark ends on purpose,
# and no handlers around the start of the processes that are measured.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
