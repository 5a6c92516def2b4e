"""The ids of responses, and the event of the end of one. The feature ``responses`` has the rest."""

PREFIX = "resp_"
JOB_PREFIX = "job_"

# The event of a row of ``ended`` in ``store.jobs.terminal``; ``store.schema.event_types`` lists the names.
EVENT_TYPE = """'response.' || CASE
    WHEN ended.state = 'succeeded' AND ended.finish_reason = 'length' THEN 'incomplete'
    WHEN ended.state = 'succeeded' THEN 'completed' WHEN ended.state = 'cancelled' THEN 'cancelled' ELSE 'failed' END"""


def response_id(job_id: str) -> str:
    """Return the id of the job's response."""
    return PREFIX + job_id.removeprefix(JOB_PREFIX)
