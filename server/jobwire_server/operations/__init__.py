"""Pure decisions: values in, values out. Clocks, randomness and I/O stay outside."""
