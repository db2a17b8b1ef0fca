"""A model that writes token by token. Run it with: jobwire worker worker

The words stand in for those of a language model; replace them with the stream of a real one.
"""

from __future__ import annotations

import asyncio

from jobwire import Context, Worker

worker = Worker(concurrency=16)

TEXT = (
    "You asked: {question} A durable queue keeps the question, a worker writes the answer, and"
    " every token is stored before the job is done. Whoever reads it may go away and come back:"
    " nothing is missed, and nothing comes twice."
)


@worker.operation("answer")
async def answer(context: Context) -> dict[str, int]:
    tokens = TEXT.format(question=context.payload["question"]).split(" ")
    for number, token in enumerate(tokens):
        context.output(token + " ", "tokens")
        context.progress(number / len(tokens))
        # output() never blocks an async handler; this waits if the broker is away.
        await context.drain()
        await asyncio.sleep(context.payload.get("pause_s", 0.05))
    return {"tokens": len(tokens)}
