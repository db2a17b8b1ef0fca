"""The background loops on the real stores."""
