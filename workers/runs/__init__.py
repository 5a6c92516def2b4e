"""A job in a worker: its claim, its lease, its request in the engine, its output and its outcome.

How jobs reach a worker is ``workers.celery``; the part that differs by task is ``workers.tasks``.
"""
