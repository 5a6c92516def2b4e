"""How deliveries are erased: with jobs that are erased altogether, or in their own time.

The output of a job is kept while a delivery is pending, which may carry it.
"""

from headrace.store.jobs.erasure import ErasurePart, erasing, sweeping

# The oldest deliveries whose time is over and that are not pending.
_DUE = """
DELETE FROM webhook_deliveries WHERE id = ANY (ARRAY(
    SELECT id FROM webhook_deliveries
    WHERE tenant_id = :tenant_id AND created_at < now() - make_interval(secs => :ttl_s) AND state <> 'pending'
    ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED))
"""

PART = ErasurePart(
    beside=erasing("DELETE FROM webhook_deliveries WHERE job_id = ANY(CAST(:ids AS text[]))"),
    sends_output="""SELECT FROM webhook_deliveries AS pending
    WHERE pending.job_id = jobs.id AND pending.state = 'pending'""",
    sweeps={"num_deliveries": sweeping("deliveries_s", _DUE)},
)
