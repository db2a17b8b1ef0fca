"""Submits a job and waits for its result. Run it with: python submit.py NAME"""

from __future__ import annotations

import sys

from jobwire import Client

with Client() as client:
    # A dict becomes JSON. JSON text goes as it is with jobwire.Json('{"name": "world"}'); a str by
    # itself is a JSON string.
    handle = client.submit("hello", {"name": " ".join(sys.argv[1:]) or "world"})
    print(handle.id)
    print(handle.result(timeout=60))
