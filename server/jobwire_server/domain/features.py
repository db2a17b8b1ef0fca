"""What this server supports beyond the first version of the contract."""

from __future__ import annotations

FEATURES = ("credit_bytes", "headers", "payload_metadata", "produce", "received", "status_metadata")
"""As `GetServerInfo` and `Attached` list them, and a job may require them; sorted.

- `credit_bytes`: `WorkRequest.credit_bytes`
- `headers`: `JobSpec.headers`
- `payload_metadata`: `Payload.metadata`
- `produce`: `JobService.Produce`
- `received`: `WorkRequest.received`
- `status_metadata`: `UpdateWorkerStatusRequest.metadata` and `WorkRequest.status_metadata`
"""
