"""Counts the flows that nothing takes forward: a check of ``settling``, for the dispatcher's metrics.

A step becomes ready, or the flow ends, in the transaction that ends the step before. So a running flow always has a
step that runs, that a worker may claim, or that waits for an approval. One without such a step is the sign of a defect,
or of a change by hand.
"""

from sqlalchemy import text

from headrace.features.flows.store.settling import FLOW_LEASE
from headrace.store.db.database import Database
from headrace.store.schema.job_states import UNSERVED_QUEUE

MOST_LOOKED_AT = 1_000
"""So many running flows are looked at."""

# A flow is found by its lease, which the index of running jobs has.
_COUNT = text(f"""
SELECT count(*) FROM (
    SELECT id FROM jobs WHERE state = 'running' AND lease_expires_at = {FLOW_LEASE} LIMIT :most
) AS flow
WHERE NOT EXISTS (
    SELECT FROM jobs AS step
    WHERE step.parent_id = flow.id AND (step.state = 'running' OR step.state = 'queued' AND (
        step.queue <> :unserved OR EXISTS (
            SELECT FROM tool_approvals AS asked WHERE asked.step_id = step.id AND asked.state = 'pending')))
)
""")


def count_stuck_flows(db: Database, most: int = MOST_LOOKED_AT) -> int:
    """Return the number of running flows without a step that runs, may run or is parked. Raises Unavailable."""
    with db.autocommit() as connection:
        return int(connection.execute(_COUNT, {"most": most, "unserved": UNSERVED_QUEUE}).scalar_one())
