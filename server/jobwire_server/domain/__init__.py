"""Values: jobs, queues, workers, ids, errors, limits; and decisions, as pure functions of them.

Everything else imports it, so that a notion has one class and one name.
It knows no store, no transport and no message of the contract, and does no I/O.
"""
