"""Workers on one side, queues on the other."""
