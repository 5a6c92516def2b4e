"""Jobs of several steps: their submission, pipelines, tools that the server calls, and approvals of their calls.

The core knows that a job waits for others and belongs to a parent (``store.jobs.flow_settling``). What makes such jobs
is here.
"""
