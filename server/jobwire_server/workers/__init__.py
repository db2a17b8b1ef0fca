"""Brings jobs to workers: who they are, what they may take, their streams, leases and silences.

Change here how jobs are dispatched, how a stream behaves, and when a worker is taken for lost.
Ends and reports of attempts are handed to the broker; nothing here decides what becomes of a job.
"""
