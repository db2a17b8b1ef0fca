"""Breaking the circles that errors close, so that what a failed call sent goes with the call."""

from __future__ import annotations


def let_go(error: BaseException) -> None:
    """Have an error, and those it came from, hold none of the frames that they went through.

    The frames hold the request, and some of them the error. Python's collector would find that, but
    it counts objects, of which a request of a megabyte is one, and to look through everything that
    a server holds takes it a tenth of a second.
    """
    while True:
        error.__traceback__ = None
        cause, error.__cause__ = error.__cause__, None
        before, error.__context__ = error.__context__, None
        follows = cause or before
        if follows is None:
            return
        error = follows
