"""The way to the store: addresses, clusters, sentinels, replicas, the bundled Valkey, its health.

Change here how a store is found, tried, watched and given up.
It knows no queue and no job.
"""
