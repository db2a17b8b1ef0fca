"""`python -m jobwire_server` is `jobwire serve`."""

from __future__ import annotations

from jobwire_server.command import serve

if __name__ == "__main__":
    serve()
