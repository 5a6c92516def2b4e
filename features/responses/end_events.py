"""The event of the end of a response."""

from headrace.store.jobs.end_events import EndEvents

PART = EndEvents(
    "responses",
    """'response.' || CASE
    WHEN ended.state = 'succeeded' AND ended.finish_reason = 'length' THEN 'incomplete'
    WHEN ended.state = 'succeeded' THEN 'completed'
    WHEN ended.state = 'cancelled' THEN 'cancelled' ELSE 'failed' END""",
)
