"""The work of each task: how its models are loaded, which engine runs them, and how a job becomes an outcome.

One module is one task, other tasks are features (``model.py``), and ``registry`` lists all. What all tasks share is
in ``workers.runs``.
"""
