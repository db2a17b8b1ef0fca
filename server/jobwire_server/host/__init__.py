"""Runs processes: the command, settings, the server as one object, supervisor and children.

Change here how a server is started, configured, watched and stopped, and what it serves over HTTP.
It builds the broker and hands it to the servicers, and knows nothing of jobs.
"""
