"""Pure decisions: values in, values out.

Rules of the product that need no store to be told, tested or read: what follows the end of an
attempt, when a schedule is due, which routes a worker serves. Clocks and randomness are arguments.
"""
