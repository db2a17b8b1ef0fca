"""Messages by chance, from their descriptors."""

from __future__ import annotations

import base64
import random
import struct
import time
from contextlib import suppress
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz import words
from tests.fuzz.learnt import Learnt, Lease, name_of

DEEPEST = 7
"""Below this no message is put into another, but for what is meant to be deep."""
DEEP = (5, 20, 28, 90)
MOST_BYTES = 3 << 20
"""Of a list: larger messages are refused before anybody looks into them."""
MOST_ENTRIES = 20_000
"""Of a map, and of a list of messages: more take seconds to make."""
LONG_BYTES = (1, 64, 1_000, 20_000, 70_000)
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


class Drawing:
    """Draws the parts of one request.

    Args:
        rng: All chance comes from it.
        learnt: What to take up from earlier answers.
        odd: The share of values that are not meant to be good.
        huge: One list may have up to a million entries.
        on_stream: They go over a worker's stream.
    """

    def __init__(
        self,
        rng: random.Random,
        learnt: Learnt,
        odd: float,
        *,
        huge: bool = False,
        on_stream: bool = False,
    ) -> None:
        self.rng = rng
        self.worker = ""
        """Whose request it is."""
        self._on_stream = on_stream
        self._learnt = learnt
        self._odd = odd
        self._huge = huge
        self._lease: Lease | None = None
        self._queue = "default"
        self._above: list[str] = []

    def message(self, message: Message, depth: int = 0) -> Message:
        """Fill a message by chance; return it."""
        descriptor = message.DESCRIPTOR
        fields = descriptor.fields_by_name
        if "worker_id" in fields and not self.worker:
            self.worker = self._some_worker()
        if "fencing_token" in fields:
            self._lease = self._learnt.lease(self.worker, self.rng, on_stream=self._on_stream)
        if descriptor.full_name == "google.protobuf.Struct" and self._is_odd():
            return self._deep_struct(message)
        chosen = {oneof.name: self.rng.choice(oneof.fields).name for oneof in descriptor.oneofs}
        self._above.append(descriptor.name)
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and chosen[oneof.name] != field.name:
                continue
            if self._wants(field, depth):
                self._fill(message, field, depth)
        self._above.pop()
        return message

    def job_id(self, queue: str) -> str:
        """Return a new job's id."""
        ulid = self.rng.choice("01234567") + "".join(self.rng.choices(_BASE32, k=25))
        return f"{queue}-{ulid}"

    def _is_odd(self) -> bool:
        return self.rng.random() < self._odd

    def _wants(self, field: FieldDescriptor, depth: int) -> bool:
        if field.message_type is not None and depth >= DEEPEST:
            return False
        if not self._is_odd() and any(
            field.name in words.NOT_BELOW.get(name, ()) for name in self._above
        ):
            return False
        return self.rng.random() < self._share(field, depth)

    def _share(self, field: FieldDescriptor, depth: int) -> float:
        """How often a field is set."""
        for name in (f"{field.containing_type.name}.{field.name}", field.name):
            if name in words.SHARES:
                return words.SHARES[name]
        if field.name in words.REQUIRED:
            return 0.99 - 0.2 * self._odd
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            return 0.95
        return 0.5 if depth == 0 else 0.3

    def _fill(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), field, depth)
        elif field.is_repeated:
            values = getattr(message, field.name)
            count = self._count(int(field.name in words.REQUIRED))
            if field.message_type is None:
                # Of a long list all entries are alike, or to draw them takes longer than all else.
                few = [self._scalar(field) for _ in range(min(count, 20))]
                values.extend(few)
                count = min(count, MOST_BYTES * len(few) // (message.ByteSize() + 1))
                values.extend((few * (count // 20 + 1))[len(few) : count])
                return
            for _ in range(min(count, 20)):
                self._submessage(values.add(), field, depth)
            if count > 20:
                # One that is deeper than the library reads can't be copied.
                with suppress(DecodeError):
                    most = min(MOST_ENTRIES, MOST_BYTES // (values[-1].ByteSize() + 1))
                    count = min(count, most)
                    values.extend([values[-1]] * (count - 20))
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            self._submessage(inner, field, depth)
        else:
            setattr(message, field.name, self._scalar(field))

    def _fill_map(self, entries: Any, field: FieldDescriptor, depth: int) -> None:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for number in range(min(self._count(), MOST_ENTRIES)):
            name = self._scalar(key)
            if number and isinstance(name, str):
                name += str(number)
            if value.message_type is None:
                entries[name] = self._scalar(value)
            elif number < 20:
                self._submessage(entries[name], value, depth)

    def _count(self, least: int = 0) -> int:
        if self._huge and self.rng.random() < 0.3:
            self._huge = False
            return self.rng.choice(words.HUGE_COUNTS)
        if self._is_odd() and self.rng.random() < 0.5:
            return self.rng.choice(words.COUNTS)
        return self.rng.randint(least, 3)

    def _submessage(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        full_name = message.DESCRIPTOR.full_name
        if full_name == "google.protobuf.Duration":
            self._duration(message, field.name)
        elif full_name == "google.protobuf.Timestamp":
            self._moment(message, field.name)
        else:
            self.message(message, depth + 1)

    def _duration(self, message: Any, name: str) -> None:
        if self._is_odd():
            message.seconds = self.rng.choice(words.ODD_SECONDS)
            message.nanos = self.rng.choice(words.ODD_NANOS)
            return
        low, high = words.SECONDS.get(name, (0.0, 10.0))
        message.FromMilliseconds(int(1_000 * self.rng.uniform(low, high)))

    def _moment(self, message: Any, name: str) -> None:
        if self._is_odd():
            message.seconds = self.rng.choice(words.ODD_MOMENTS)
            message.nanos = self.rng.choice(words.ODD_NANOS)
            return
        past = name.endswith("after") or name in ("anchor", "start_at")
        away_s = self.rng.uniform(1, 60) * (-1 if past else 1)
        message.FromMilliseconds(int(1_000 * (time.time() + away_s)))

    def _deep_struct(self, message: Any) -> Message:
        at = message
        for _ in range(self.rng.choice(DEEP)):
            at = at.fields["a"].struct_value
        at.fields["n"].number_value = self.rng.choice(words.ODD_FLOATS)
        return message

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return self._bytes()
            if field.name == "job_id" and "spec" in field.containing_type.fields_by_name:
                return self._proposed_job()
            text = self._string(name_of(field))
            if field.name == "queue":
                self._queue = text
            return text
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.rng.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            if self._is_odd():
                return self.rng.choice((-1, 0, 99, 2**31 - 1, -(2**31)))
            # The first is the unspecified one.
            first, *others = field.enum_type.values
            return self.rng.choice(others if others and self.rng.random() < 0.9 else [first]).number
        if kind in INTEGERS:
            return self._integer(field)
        if self._is_odd():
            value = self.rng.choice(words.ODD_FLOATS)
        else:
            value = self.rng.uniform(*words.NUMBERS.get(field.name, (0, 5)))
        if kind == FieldDescriptor.CPPTYPE_FLOAT:
            return struct.unpack("f", struct.pack("f", value if abs(value) < 1e38 else 0.0))[0]
        return value

    def _integer(self, field: FieldDescriptor) -> int:
        low, high = INTEGERS[field.cpp_type]
        if self._is_odd():
            near = self.rng.choice((low, 0, 1, 256, 10_001, high))
            return min(high, max(low, near + self.rng.choice((-1, 0, 1))))
        if field.name == "fencing_token":
            return self._lease[2] if self._lease else 1
        known = self._learnt.draw(name_of(field), self.rng)
        if isinstance(known, int) and self.rng.random() < 0.7 and low <= known <= high:
            return known
        least, most = words.NUMBERS.get(field.name, (0, 5))
        return self.rng.randint(int(least), int(most))

    def _bytes(self) -> bytes:
        most = self.rng.choice(LONG_BYTES) if self._is_odd() else 40
        return self.rng.randbytes(self.rng.randint(0, most))

    def _string(self, name: str) -> str:
        if self._is_odd():
            return self._odd_string(name)
        if name == "worker_id" and self.worker:
            return self.worker
        if name == "job_id":
            return self._known_job()
        if name in words.STRINGS:
            return self.rng.choice(words.STRINGS[name])
        known = self._learnt.draw(name, self.rng)
        if isinstance(known, str):
            return known
        return "" if name.endswith(("token", "cursor")) else self.rng.choice(words.SHORT)

    def _some_worker(self) -> str:
        """One that holds something, if there is one."""
        lease = self._learnt.lease("", self.rng)
        if lease is not None and lease[0] and self.rng.random() < 0.6:
            return lease[0]
        return self._string("worker_id")

    def _proposed_job(self) -> str:
        if self.rng.random() < 0.1 or self._is_odd():
            return self._string("job_id")
        return self.job_id(self._queue)

    def _known_job(self) -> str:
        if self._lease is not None and self.rng.random() < 0.8:
            return self._lease[1]
        known = self._learnt.job(self._queue if "JobFilter" in self._above else "", self.rng)
        if known and self.rng.random() < 0.9:
            return known
        return self.job_id(self._queue)

    def _odd_string(self, name: str) -> str:
        known = self._learnt.draw(name, self.rng)
        if isinstance(known, str) and known and self.rng.random() < 0.5:
            return self._changed(known)
        return self.rng.choice(words.ODD_STRINGS)

    def _changed(self, text: str) -> str:
        """A known text, a little different: opaque ones inside of their wrapping too."""
        if self.rng.random() < 0.5:
            try:
                inner = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except ValueError:
                pass
            else:
                cut = self.rng.randint(0, len(inner))
                odd = self.rng.choice(words.ODD_STRINGS).encode()
                return base64.urlsafe_b64encode(inner[:cut] + odd[:500] + inner[cut:]).decode()
        at = self.rng.randrange(len(text))
        put = self.rng.choice(("", "0", "9" * 30, "\0", "-", "z", ".5", "ü"))
        return text[:at] + put + text[at + self.rng.randint(0, 2) :]
