"""How the message of a Celery task is erased: with the input of its job. Nothing is left to confirm then."""

from headrace.store.jobs.erasure import ErasurePart, erasing

_MESSAGES = """
UPDATE celery_tasks SET message = NULL, confirmed_at = COALESCE(confirmed_at, now())
WHERE job_id = ANY(CAST(:ids AS text[]))
"""

PART = ErasurePart(inputs=erasing(_MESSAGES))
