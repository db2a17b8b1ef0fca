"""Turns what the store announces into watch streams, without a gap from snapshot to end.

Change here what watchers see, how slow ones are served, and how a watch is resumed.
It reads jobs and never changes one; filters and messages of the contract are not its business.
"""
