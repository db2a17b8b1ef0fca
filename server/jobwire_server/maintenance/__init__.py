"""Background loops: what the clock and the silence of workers ask for.

Every server runs them for every queue. That is safe because each step is one atomic script that a
second call finds done.
"""
