"""A worker with one handler. Run it with: jobwire worker worker"""

from __future__ import annotations

from jobwire import Context, Worker

worker = Worker()


@worker.operation("hello")
def hello(context: Context) -> str:
    context.progress(0.5, "thinking of a greeting")
    return f"Hello, {context.payload['name']}! This is attempt {context.attempt}."
