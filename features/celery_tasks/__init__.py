"""Tasks of users' own Celery apps: the job of a task id, and the message that goes on once the job has ended.

``headrace.celery`` is the other end, in the user's worker. It submits a job under the task's id, together with the
task's message: its link, chain and chord. Once the job has ended, a worker of the user takes the message and sends it
in its own broker. It comes again until the worker confirms that the task has ended there too. Headrace never speaks to
the user's broker.
"""
