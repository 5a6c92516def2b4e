"""How the message of a Celery task is erased: with the output of its job. Nothing is left to confirm then.

Both are kept for some days until the task has ended in the user's app, whose workers may be away. A confirmed task has
no message any more.
"""

from headrace.store.jobs.erasure import ErasurePart, erasing

_DAYS = 3
_MESSAGES = """
UPDATE celery_tasks SET message = NULL, confirmed_at = COALESCE(confirmed_at, now())
WHERE job_id = ANY(CAST(:ids AS text[]))
"""

PART = ErasurePart(
    outputs=erasing(_MESSAGES),
    sends_output=f"""SELECT FROM celery_tasks AS task
    WHERE task.job_id = jobs.id AND task.confirmed_at IS NULL
        AND jobs.completed_at > now() - make_interval(days => {_DAYS})""",
)
