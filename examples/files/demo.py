"""Real work through a real broker: every file of a directory becomes a job.

    python examples/files/demo.py [DIRECTORY]

Start a broker on its bundled store, with its data in ./demo-data, and a worker; submit one
job per file for its checksum, line count and compressed size; show them run; sum up. Then
broker and worker stay up until Ctrl-C. With JOBWIRE_DEMO_EXIT=1, or if standard input is not a
terminal, the demo ends after the summary.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # Nothing runs yet: until the demo takes over the signals, they end it silently.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda number, _: os._exit(128 + number))
    # Before the imports, which take a moment.
    print("Jobwire demo: a broker, a worker, and a job for every file", flush=True)

    from files import main

    raise SystemExit(main())
