"""`python -m jobwire_server` is `jobwire serve`."""

from __future__ import annotations

import gc
import os

from jobwire_server.host.signals import end_without_a_word
from jobwire_server.telemetry.standard_streams import open_closed_streams

if __name__ == "__main__":
    # Before the imports, which take a while and open files.
    end_without_a_word()
    open_closed_streams()
    # As `jobwire serve`: handshakes that fail are nothing for the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

    # What is imported stays for good: the garbage collector need not look through it.
    gc.disable()
    from jobwire_server.host.command import serve

    gc.freeze()
    gc.enable()
    serve()
