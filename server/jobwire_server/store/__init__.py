"""The store: every fact of the broker in Redis or Valkey, changed by atomic scripts only."""
