"""On the path of a server it lets a signal hold up the event loop, while gRPC's threads go on."""

import signal
import time

HOLD_S = 3.0


def _hold(number: int, frame: object) -> None:
    print("the loop is stuck", flush=True)
    time.sleep(HOLD_S)


signal.signal(signal.SIGUSR1, _hold)
