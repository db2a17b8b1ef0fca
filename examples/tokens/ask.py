"""Read an answer as it is written, lose the connection on the way, and resume from there.

Run it with: python ask.py "What is a job broker?"
"""

from __future__ import annotations

import sys

from jobwire import Client, OutputPosition

CUT_OFF_AFTER = 12


def main(question: str) -> None:
    with Client() as client:
        handle = client.submit("answer", {"question": question})
        job_id = handle.id
        place: OutputPosition | None = None
        for number, chunk in enumerate(handle.chunks("tokens")):
            print(chunk.text, end="", flush=True)
            place = chunk.after
            if number == CUT_OFF_AFTER:
                break

    # All that a reader has to remember is the job and the position. Another process could do this,
    # even days later: it resumes after the last piece that was seen.
    print("| ", end="", flush=True)
    with Client() as client:
        handle = client.job(job_id)
        for chunk in handle.chunks("tokens", start=place):
            print(chunk.text, end="", flush=True)
        print(f"\n{handle.result()['tokens']} tokens, {job_id}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is a job broker?")
