"""What a worker tells of itself, checked before it is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobwire.v1.worker_service_pb2 import StatusMetadata

BUILD_VARIABLE = "JOBWIRE_BUILD_ID"
MAX_BUILD_BYTES = 128
# The contract's.
_MAX_ENTRIES = 16
_MAX_VALUE_BYTES = 256
_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")


def status_metadata(entries: Mapping[str, str | int | float]) -> StatusMetadata:
    """Return what is to be told in the contract's form; numbers as text.

    Raises:
        TypeError: A value is neither a text nor a number.
        ValueError: There are more than 16 entries, or a key or value is out of its bounds.
    """
    if len(entries) > _MAX_ENTRIES:
        raise ValueError(f"a worker can tell {_MAX_ENTRIES} entries, not {len(entries)}")
    told = StatusMetadata()
    for key, value in entries.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"the key {key[:80]!r} must have 1 to 63 letters, digits and . _ / -")
        if not isinstance(value, str | int | float):
            raise TypeError(f"{key!r} is a {type(value).__name__}; give a text or a number")
        text = str(value)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError(f"{key!r} holds half of a surrogate pair") from None
        if size > _MAX_VALUE_BYTES:
            raise ValueError(f"{key!r} has {size} bytes, more than {_MAX_VALUE_BYTES}")
        told.entries[key] = text
    return told
