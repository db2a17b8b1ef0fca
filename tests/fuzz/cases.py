"""The calls of a run, one after the other: the seed and the number of a call fix all of it but what
is taken up from earlier answers, and the time of day.
"""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.message import DecodeError, Message

from tests.fuzz import words
from tests.fuzz.breaking import break_bytes
from tests.fuzz.drawing import Drawing
from tests.fuzz.inputs import DEFAULT_TIMEOUT_S, Ending, Input
from tests.fuzz.learnt import Learnt
from tests.fuzz.surface import Method

MOST_FRAMES = 12
FIRST = "attach"
"""What belongs into the first frame of a stream, and into no other."""
ODDNESS = ((0.62, 0.0), (0.28, 0.08), (0.1, 0.4))
"""Share of calls, and of odd values in them."""
BROKEN, HUGE = 0.06, 0.001
HASTE = 0.03
"""Of calls with a deadline that may pass on the way."""
ENDINGS: dict[bool, tuple[tuple[Ending, float], ...]] = {
    False: (("read", 0.98), ("cancel", 0.015), ("drop", 0.005)),
    True: (("read", 0.5), ("close", 0.3), ("cancel", 0.1), ("drop", 0.03), ("leave", 0.07)),
}
METADATA: tuple[tuple[str, str | bytes], ...] = (
    ("x-request-id", "a-b-c"),
    ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
    ("authorization", "Bearer x"),
    ("jobwire-long", "x" * 3_000),
    ("jobwire-odd-bin", bytes(range(256))),
    ("grpc-status-details-bin", b"\xff\xff"),
    ("content-language", "~!@#$%^&*()"),
)


class Case:
    """One call, drawn as it goes.

    Args:
        seed: Of the run.
        number: Of the call in it.
        known: All methods.
        learnt: What earlier answers told, and this one's will.
    """

    def __init__(self, seed: int, number: int, known: dict[str, Method], learnt: Learnt) -> None:
        rng = self._rng = random.Random(f"{seed} {number}")
        names = [*known]
        weights = [
            words.WEIGHTS.get(known[name].short, 1.0) if known[name].own else words.FOREIGN_WEIGHT
            for name in names
        ]
        method = known[rng.choices(names, weights)[0]]
        (_, odd), *_ = rng.choices(ODDNESS, [share for share, _ in ODDNESS])
        self._broken = rng.random() < BROKEN
        self._learnt = learnt
        self._drawing = Drawing(
            rng, learnt, odd, huge=rng.random() < HUGE, on_stream=method.streams_in
        )
        self._orderly = rng.random() > odd
        self._frames = rng.randint(1, MOST_FRAMES) if method.streams_in else 1
        endings = ENDINGS[method.streams_in or method.streams_out]
        (ending,) = rng.choices([name for name, _ in endings], [share for _, share in endings])
        hasty = rng.random() < HASTE
        self.input = Input(
            method,
            (),
            ending,
            rng.choice((0.0005, 0.005, 0.05)) if hasty else DEFAULT_TIMEOUT_S,
            tuple(rng.sample(METADATA, rng.randint(1, 3))) if rng.random() < 0.05 else (),
        )

    def frame(self, number: int) -> bytes | None:
        """Return the frame of a number, None after the last."""
        if number >= self._frames:
            return None
        message: Any = self._drawing.message(self.input.method.request())
        if self.input.method.streams_in:
            self._put_in_order(message, number)
        data: bytes = message.SerializeToString()
        # On a stream the frames before the broken one open the way for it.
        if self._broken and number == self._frames - 1:
            data = break_bytes(self._rng, data)
        return data

    def hear(self, data: bytes) -> None:
        """Learn from an answer."""
        try:
            answer: Message = self.input.method.answer.FromString(data)
        except DecodeError:
            return
        on_stream = self.input.method.streams_in
        self._learnt.hear(answer, self._drawing.worker, on_stream=on_stream)

    def _put_in_order(self, message: Any, number: int) -> None:
        fields = message.DESCRIPTOR.fields_by_name
        if not self._orderly or FIRST not in fields:
            return
        if number == 0:
            first = message.__class__()
            getattr(first, FIRST).CopyFrom(getattr(message, FIRST))
            if not message.HasField(FIRST):
                self._drawing.message(getattr(first, FIRST), 1)
            message.CopyFrom(first)
        else:
            message.ClearField(FIRST)
            # It would be the end of most streams after a frame or two.
            if "detach" in fields and self._rng.random() < 0.9:
                message.ClearField("detach")
            if "sequence" in fields:
                message.sequence = number
