"""The routes of every task, and what a body sent to one of a task's URLs means: for the application and for batches.

One module is one task, other tasks and the faces of ``generate`` are features (``task_routes.py``), and ``registry``
lists all.
"""
