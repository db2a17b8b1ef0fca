"""Decides and records: the only place where a job is created or changes state.

The router is the public API; behind it stand what it consists of. Change here what an operation of
the broker does, in terms of the decisions in `domain` and the scripts in `store`.
It never imports gRPC or the contract's messages, and knows workers and watchers as parts that
it uses.
"""
