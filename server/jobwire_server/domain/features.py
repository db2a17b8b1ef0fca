"""What this server supports beyond the first version of the contract."""

from __future__ import annotations

FEATURES = ("headers", "payload_metadata", "received")
"""As `GetServerInfo` and `Attached` list them, and a job may require them; sorted.

- `headers`: `JobSpec.headers`
- `payload_metadata`: `Payload.metadata`
- `received`: `WorkRequest.received`
"""
