"""What a server tells of itself: counts, logs, and the call that a task serves.

Any room above may count and log; new metrics and the form of log lines belong here.
It knows no job, no store and no RPC but by name.
"""
