"""Jobs of several steps: their submission, pipelines, tools that the server calls, and approvals of their calls.

The core knows that a job may have a parent (``store.jobs.parent_part``). Flows are such parents.
"""
