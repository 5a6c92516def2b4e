-- The partitions by day, which the dispatcher makes and drops. It may not change tables, so functions do. A day is 24
-- hours of UTC. ``job_events`` and ``job_terminal`` lie by the time in the job's id, the ledger by that of the end. The
-- partition ``…_rest`` has what no day has: rows of days that nobody made, and of jobs that are left of a dropped day.

CREATE FUNCTION headrace_bound(by_id boolean, at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
SELECT CASE WHEN by_id
    THEN 'job_' || lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') ELSE CAST(at AS text) END
$$;

-- ``first``: null if it has all rows before ``beyond``. ``until``: the time of ``beyond``. The collation of the bounds is that
-- of the ids, not that of the catalog, so that they can be compared by an index.
CREATE FUNCTION headrace_days() RETURNS TABLE (
    whole text, by_id boolean, part text, first text, beyond text, until timestamptz
) LANGUAGE sql STABLE AS $$
SELECT CAST(parted.oid::regclass AS text), by_id, CAST(inhrelid::regclass AS text),
    bounds[1] COLLATE "default", bounds[2] COLLATE "default",
    CASE WHEN by_id THEN to_timestamp(CAST(CAST('x' || substr(bounds[2], 5, 12) AS bit(48)) AS bigint) / 1000.0)
        ELSE CAST(bounds[2] AS timestamptz) END
FROM pg_class AS parted JOIN pg_inherits ON inhparent = parted.oid JOIN pg_class AS day ON day.oid = inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(day.relpartbound, day.oid),
        'FROM \((?:MINVALUE|''([^'']+)'')\) TO \(''([^'']+)''\)') AS bounds
    CROSS JOIN LATERAL (SELECT parted.relname <> 'usage_ledger' AS by_id) AS key
WHERE parted.relkind = 'p' AND parted.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'jobs'::regclass)
    AND parted.relname IN ('job_events', 'job_terminal', 'usage_ledger') AND bounds IS NOT NULL
$$;

-- Makes the days that are missing up to ``ahead`` days from now; returns their number. A day of which rows are in the
-- rest already stays there.
CREATE FUNCTION headrace_make_days(ahead int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    missing record;
    is_taken boolean;
    num int := 0;
BEGIN
    FOR missing IN
        SELECT whole, day, bounds[1] AS first, bounds[2] AS beyond, CASE WHEN by_id THEN 'job_id' ELSE 'at' END AS key
        FROM (SELECT whole, by_id, max(until) AS until FROM headrace_days() GROUP BY whole, by_id) AS made
            CROSS JOIN LATERAL generate_series(
                until, date_trunc('day', now(), 'UTC') + ahead * interval '24 hours', interval '24 hours') AS day
            CROSS JOIN LATERAL (SELECT ARRAY[headrace_bound(by_id, day),
                headrace_bound(by_id, day + interval '24 hours')] AS bounds) AS its
        ORDER BY day, whole
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s_rest WHERE %I >= %L AND %I < %L)',
            missing.whole, missing.key, missing.first, missing.key, missing.beyond) INTO is_taken;
        CONTINUE WHEN is_taken;
        EXECUTE format('CREATE TABLE %s_%s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)',
            missing.whole, to_char(missing.day AT TIME ZONE 'UTC', 'YYYYMMDD'), missing.whole);
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s_%s FOR VALUES FROM (%L) TO (%L)',
            missing.whole, missing.whole, to_char(missing.day AT TIME ZONE 'UTC', 'YYYYMMDD'), missing.first, missing.beyond);
        num := num + 1;
    END LOOP;
    RETURN num;
END
$$;

-- Drops the oldest partition of events or ends of which at most ``most_left`` jobs are left, if all its jobs were made
-- longer than ``older_than_s`` ago; returns its name. What is left of these jobs moves to the rest.
CREATE FUNCTION headrace_drop_day(older_than_s float8, most_left int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    due record;
    ids varchar[];
BEGIN
    FOR due IN
        SELECT * FROM headrace_days() WHERE by_id AND until < now() - make_interval(secs => older_than_s)
        ORDER BY until, whole
    LOOP
        SELECT array_agg(id) INTO ids FROM (
            SELECT id FROM jobs WHERE id >= COALESCE(due.first, '') AND id < due.beyond LIMIT most_left + 1) AS jobs;
        CONTINUE WHEN cardinality(ids) > most_left;
        EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', due.whole, due.part);
        IF ids IS NOT NULL THEN
            EXECUTE format('INSERT INTO %s SELECT * FROM %s WHERE job_id = ANY ($1)', due.whole, due.part) USING ids;
        END IF;
        EXECUTE format('DROP TABLE %s', due.part);
        RETURN due.part;
    END LOOP;
    RETURN NULL;
END
$$;

-- Deletes at most ``most`` rows of the rest of events and ends whose jobs were made longer than ``older_than_s`` ago and
-- are gone; returns their number.
CREATE FUNCTION headrace_clear_rest(older_than_s float8, most int) RETURNS bigint LANGUAGE sql AS $$
WITH events AS (
    DELETE FROM job_events_rest WHERE (job_id, id) IN (
        SELECT job_id, id FROM job_events_rest AS old
        WHERE job_id < headrace_bound(true, now() - make_interval(secs => older_than_s))
            AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = old.job_id) LIMIT most)
    RETURNING 1
), ends AS (
    DELETE FROM job_terminal_rest WHERE job_id IN (
        SELECT job_id FROM job_terminal_rest AS old
        WHERE job_id < headrace_bound(true, now() - make_interval(secs => older_than_s))
            AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = old.job_id) LIMIT most)
    RETURNING 1
)
SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM ends)
$$;

-- Adds up the oldest partition of the ledger to the totals of its days and drops it, if it ended longer than
-- ``older_than_s`` ago, at least a day; returns its name.
CREATE FUNCTION headrace_add_up_day(older_than_s float8) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    due record;
BEGIN
    SELECT * INTO due FROM headrace_days()
    WHERE NOT by_id AND until <= date_trunc('day', now() - make_interval(secs => GREATEST(older_than_s, 86400)), 'UTC')
    ORDER BY until LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE MODE', due.part);
    EXECUTE format($sum$
        INSERT INTO usage_days AS total (
            tenant_id, at, alike, api_key_id, project_id, user_id, task, model, model_version, class_rank,
            num_jobs, input_tokens, cached_tokens, output_tokens, cost)
        SELECT tenant_id, date_trunc('day', at, 'UTC'),
            md5(CAST((api_key_id, project_id, user_id, task, model, model_version, class_rank) AS text)),
            api_key_id, project_id, user_id, task, model, model_version, class_rank,
            count(*), sum(input_tokens), sum(cached_tokens), sum(output_tokens), COALESCE(sum(cost), 0)
        FROM %s
        GROUP BY tenant_id, date_trunc('day', at, 'UTC'), api_key_id, project_id, user_id, task, model, model_version,
            class_rank
        ON CONFLICT (tenant_id, at, alike) DO UPDATE SET
            num_jobs = total.num_jobs + EXCLUDED.num_jobs,
            input_tokens = total.input_tokens + EXCLUDED.input_tokens,
            cached_tokens = total.cached_tokens + EXCLUDED.cached_tokens,
            output_tokens = total.output_tokens + EXCLUDED.output_tokens,
            cost = total.cost + EXCLUDED.cost
        $sum$, due.part);
    EXECUTE format('DROP TABLE %s', due.part);
    RETURN due.part;
END
$$;
