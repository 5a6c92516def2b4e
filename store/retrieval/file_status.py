"""The status of a file in a vector store, as SQL: complete once its passages are stored, else its job's state."""

from typing import Final

LOST_AFTER_S: Final = 600
"""A file whose job was not accepted within so many seconds has failed: the process that added it was lost."""

STATUS_JOIN: Final = """
LEFT JOIN jobs ON jobs.tenant_id = attached.tenant_id AND jobs.id = attached.job_id
"""

STATUS: Final = f"""CASE
    WHEN attached.completed_at IS NOT NULL THEN 'completed'
    WHEN attached.job_id IS NULL AND attached.created_at > now() - interval '{LOST_AFTER_S} seconds' THEN 'in_progress'
    WHEN jobs.state IN ('queued', 'running') THEN 'in_progress'
    WHEN jobs.state = 'cancelled' THEN 'cancelled'
    ELSE 'failed' END"""
"""``in_progress``, ``completed``, ``failed`` or ``cancelled``; needs ``STATUS_JOIN``."""
