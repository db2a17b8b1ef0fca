"""What a supervisor starts, with `-m`: imports `child`, and runs it."""

from __future__ import annotations

import gc
import sys

if __name__ == "__main__":
    # What is imported stays for good. The garbage collector would look through it all along: a
    # quarter of the CPU of a start.
    gc.disable()
    from jobwire_server.host.child import main

    gc.freeze()
    gc.enable()
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
