"""The statements of ``store.jobs.claims``.

A statement that changes jobs skips rows that another transaction has locked, and names the epoch of each attempt.
"""

from sqlalchemy import text

from headrace.store.jobs.terminal import COMPLETED_AFTER, CONCLUDED, ENDED, ERROR_AFTER, STATE_AFTER, blamed, verdict

# A job that is too long for this worker is left to a live worker that can hold it. If there is none, this worker takes
# the job and refuses it.
_IS_FOR_ANOTHER_WORKER = """
GREATEST(cost_tokens, input_tokens) > CAST(:capacity AS int) AND EXISTS (
    SELECT FROM worker_processes AS other
    WHERE other.queue = jobs.queue AND other.seen_at > now() - make_interval(secs => :gone_after_s)
        AND COALESCE(other.capacity_tokens >= GREATEST(jobs.cost_tokens, jobs.input_tokens), true))
"""

_IS_PAUSED = "EXISTS (SELECT FROM queue_controls WHERE queue_controls.queue = jobs.queue)"

# The jobs that this worker may claim.
# ``state || ''`` keeps Postgres from the indexes of queued jobs. While its statistics are those of an empty queue they
# look cheaper than the primary key, and it would read a million jobs to find thirty.
_CLAIMABLE = f"""
    SELECT id FROM jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND queue = ANY(CAST(:queues AS text[])) AND state || '' = 'queued'
        AND cancel_requested_at IS NULL AND (deadline_at IS NULL OR deadline_at > now())
        AND is_suspect = :suspects AND NOT {_IS_PAUSED}
        AND (CAST(:capacity AS int) IS NULL OR NOT ({_IS_FOR_ANOTHER_WORKER}))
"""

# Read which of the jobs this worker may claim.
CLAIMABLE = text(_CLAIMABLE)

# Claim jobs: raise the epoch, set owner and lease, record the attempt. Returns them with their checkpoints.
CLAIM = text(f"""
WITH open AS (
    {_CLAIMABLE} FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE jobs SET
        state = 'running', epoch = epoch + 1, attempt = attempt + 1, owner = :owner,
        lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s),
        started_at = COALESCE(started_at, clock_timestamp())
    FROM open WHERE jobs.id = open.id AND jobs.state || '' = 'queued'
    RETURNING jobs.*
), charged AS (
    INSERT INTO attempts (job_id, epoch, attempt, worker) SELECT id, epoch, attempt, owner FROM claimed
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT
        id, 'started', epoch,
        jsonb_strip_nulls(
            jsonb_build_object('attempt', attempt, 'worker', owner, 'engine', CAST(:engine AS text)))
    FROM claimed
)
SELECT
    claimed.id AS job_id, tenant_id, class_rank, epoch, attempt, model, model_version, task, payload,
    input_tokens,
    CAST(extract(epoch FROM deadline_at - clock_timestamp()) AS float8) AS remaining_s,
    CAST(extract(epoch FROM clock_timestamp() - GREATEST(created_at, start_after)) AS float8) AS queued_s, max_attempts,
    crashes, is_suspect, COALESCE(restarts_after, 0) AS restarts_after,
    COALESCE(cache = 'miss', false) AS is_source, to_jsonb(job_checkpoints) AS checkpoint,
    traceparent, parent_id, step, clock_timestamp() AS claimed_at,
    CASE WHEN traceparent IS NOT NULL AND epoch > 1 THEN (
        SELECT CAST(extract(epoch FROM clock_timestamp() - before.ended_at) AS float8) FROM attempts AS before
        WHERE before.job_id = claimed.id AND before.epoch = claimed.epoch - 1)
    END AS waited_s
FROM claimed LEFT JOIN job_checkpoints ON job_checkpoints.job_id = claimed.id
""")

# Renew leases. The jobs of this owner are read without a lock; a row that is locked is renewed in a later round.
RENEW = text("""
WITH ours AS MATERIALIZED (
    SELECT jobs.id, jobs.epoch, cancel_requested_at IS NOT NULL AS is_cancelled
    FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:epochs AS bigint[])) AS named(id, epoch) USING (id, epoch)
    WHERE state = 'running' AND owner = :owner
), free AS (
    SELECT jobs.id, jobs.epoch FROM jobs JOIN ours USING (id, epoch)
    WHERE state = 'running' FOR NO KEY UPDATE OF jobs SKIP LOCKED
), renewed AS (
    UPDATE jobs SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease_s)
    FROM free WHERE jobs.id = free.id AND jobs.epoch = free.epoch AND jobs.state = 'running'
    RETURNING jobs.id
)
SELECT ours.id, ours.is_cancelled, renewed.id IS NOT NULL AS is_renewed FROM ours LEFT JOIN renewed USING (id)
""")

DONE = """done AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        id text, source text, epoch bigint, state text, output jsonb, error jsonb, usage jsonb, deltas jsonb,
        num_deltas int, lineage jsonb, logprobs jsonb)
)"""

STREAMS = """streams AS (
    INSERT INTO job_streams (job_id, epoch, deltas, num_deltas, lineage, logprobs)
    SELECT id, done.epoch, done.deltas, done.num_deltas, done.lineage, done.logprobs
    FROM done JOIN ended USING (id)
    WHERE done.num_deltas > 0
)"""

# End jobs: the outcome, the stored stream and all that ``terminal.CONCLUDED`` adds. One statement is one transaction.
FINISH = text(f"""
WITH {DONE}, held AS (
    SELECT jobs.id
    FROM jobs JOIN done USING (id, epoch) WHERE jobs.state = 'running'
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), ended AS (
    UPDATE jobs SET
        state = done.state, output = done.output, error = done.error, usage = done.usage,
        completed_at = clock_timestamp(), owner = NULL, lease_expires_at = NULL
    FROM done JOIN held USING (id)
    WHERE jobs.id = done.id AND jobs.epoch = done.epoch AND jobs.state = 'running'
    RETURNING {ENDED}
), {STREAMS}, {CONCLUDED}
""")

# End jobs that wait for the answer of their source. They get its epoch, because their stream is that of the source.
FINISH_SHARERS = text(f"""
WITH {DONE}, held AS (
    SELECT jobs.id
    FROM jobs JOIN done ON done.id = jobs.id AND done.source = jobs.cache_source WHERE jobs.state = 'queued'
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), ended AS (
    UPDATE jobs SET
        state = done.state, output = done.output, error = done.error, usage = done.usage, epoch = done.epoch,
        completed_at = clock_timestamp()
    FROM done JOIN held USING (id)
    WHERE jobs.id = done.id AND jobs.cache_source = done.source AND jobs.state = 'queued'
    RETURNING {ENDED}
), {STREAMS}, {CONCLUDED}
""")

# Give jobs back. An attempt that was released without fault (a drain) is not charged. ``verdict`` decides whether a job
# ends instead: a charged job without attempts left, a job whose workers kept dying, a job with a cancel request.
RELEASE = text(f"""
WITH given AS (
    SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r(
        id text, epoch bigint, charge bool, crashed bool, cleared bool, checkpoint jsonb, later bool,
        first_token_ms float8)
), held AS (
    SELECT jobs.id, {blamed("given.crashed")} AS blamed
    FROM jobs JOIN given USING (id, epoch) WHERE jobs.state = 'running'
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), judged AS (
    SELECT given.*, blamed, {verdict("given.charge", "blamed")} AS verdict
    FROM given JOIN held USING (id) JOIN jobs USING (id)
), let_go AS (
    UPDATE jobs SET
        state = {STATE_AFTER}, error = {ERROR_AFTER}, completed_at = {COMPLETED_AFTER},
        attempt = attempt - CASE WHEN judged.charge THEN 0 ELSE 1 END,
        crashes = crashes + CASE WHEN judged.blamed THEN 1 ELSE 0 END,
        is_suspect = (is_suspect OR judged.blamed) AND NOT judged.cleared,
        owner = NULL, lease_expires_at = NULL, announced_at = CASE WHEN later THEN now() END
    FROM judged WHERE jobs.id = judged.id AND jobs.epoch = judged.epoch AND jobs.state = 'running'
    RETURNING jobs.id, jobs.state, jobs.epoch, judged.charge, judged.checkpoint,
        judged.first_token_ms
), kept AS (
    INSERT INTO job_checkpoints (job_id, deltas, token_ids, lineage, logprobs, first_token_s)
    SELECT
        id, checkpoint -> 'deltas', checkpoint -> 'token_ids', checkpoint -> 'lineage', checkpoint -> 'logprobs',
        CAST(checkpoint ->> 'first_token_s' AS float8)
    FROM let_go WHERE checkpoint IS NOT NULL AND state = 'queued'
    ON CONFLICT (job_id) DO UPDATE SET
        deltas = EXCLUDED.deltas, token_ids = EXCLUDED.token_ids, lineage = EXCLUDED.lineage,
        logprobs = EXCLUDED.logprobs, first_token_s = EXCLUDED.first_token_s
), closed AS (
    UPDATE attempts SET ended_at = clock_timestamp(), outcome = 'released'
    FROM let_go WHERE attempts.job_id = let_go.id AND attempts.epoch = let_go.epoch
), events AS (
    INSERT INTO job_events (job_id, kind, epoch, detail)
    SELECT
        id, 'released', epoch,
        jsonb_strip_nulls(jsonb_build_object('charged', charge, 'first_token_ms', first_token_ms))
    FROM let_go
)
SELECT id, state FROM let_go
""")

# Read which of these attempts still run.
STILL_RUNNING = text("""
SELECT jobs.id
FROM jobs JOIN unnest(CAST(:ids AS text[]), CAST(:epochs AS bigint[])) AS named(id, epoch) USING (id, epoch)
WHERE state = 'running'
""")

# Read whether this attempt has ended so. An attempt that the sweeper has ended has the outcome of a lost worker.
HAS_ENDED = text("""
SELECT EXISTS (
    SELECT FROM jobs JOIN attempts ON attempts.job_id = jobs.id AND attempts.epoch = jobs.epoch
    WHERE jobs.id = :id AND jobs.epoch = :epoch AND jobs.state = :state
        AND attempts.outcome IS DISTINCT FROM 'worker_lost')
""")

# Read why a job was not to be had.
UNCLAIMED = text("SELECT state, error ->> 'code' AS code FROM jobs WHERE id = :id")

# Read the running jobs of an owner.
OWNED = text("SELECT id, epoch, parent_id FROM jobs WHERE state = 'running' AND owner = :owner")
