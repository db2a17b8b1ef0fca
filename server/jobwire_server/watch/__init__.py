"""From store events to watch streams."""
