"""The tasks that a job can ask for: the request, the stored payload and the output of each, and the list of all tasks.

One module is one task; other tasks are features (``task.py``). How a task reads a model's files is in
``prompts.tasks``, its routes are in ``producer_api.tasks``, and its work is in ``workers.tasks``.
"""
