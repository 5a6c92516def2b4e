"""History of a finished run: the client log, the receiver's log, the nemesis's journal and the tables.

Uses its own SQL and types and imports no product code, so that a product defect cannot hide itself.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.journal import Json, read_journal


@dataclass(frozen=True)
class Job:
    """A row of ``jobs``, with data of other tables. Times are Unix seconds."""

    id: str
    state: str
    prompt: str = ""
    max_tokens: int = 160
    ends: bool = True
    attempt: int = 1
    crashes: int = 0
    created_at: float = 0.0
    completed_at: float | None = None
    deadline_at: float | None = None
    text: str | None = None
    code: str | None = None
    terminal: str | None = None  # from job_terminal
    terminal_events: tuple[str, ...] = ()
    stored_text: str | None = None  # joined deltas of job_streams
    used: tuple[int, int] | None = None  # input and output tokens of the job row
    billed: tuple[int, int] | None = None  # the same from the usage ledger
    is_flow: bool = False  # a job of several steps
    is_call: bool = False  # a call of a tool, which has no stream
    # Of a step only.
    parent: str | None = None
    step: str | None = None
    needs: tuple[str, ...] = ()
    num_noted: int = 0  # ends of it in the timeline of its flow


@dataclass(frozen=True)
class Attempt:
    """A row of ``attempts``."""

    job: str
    epoch: int
    worker: str
    started_at: float
    ended_at: float | None = None
    outcome: str | None = None

    @property
    def pid(self) -> str:
        """The worker's process id, from its name: name@host:pid:boot."""
        parts = self.worker.split(":")
        return parts[1] if len(parts) > 2 else ""


@dataclass(frozen=True)
class Delivery:
    """A row of ``webhook_deliveries``."""

    id: str
    job: str
    type: str
    state: str
    attempts: int = 1
    url: str = ""


@dataclass(frozen=True)
class History:
    """All data for the checker. ``steps`` are the rows of steps, ``jobs`` all others. ``log_counts`` are worker log
    lines by event name.
    """

    client: Sequence[Json] = ()
    hooks: Sequence[Json] = ()
    nemesis: Sequence[Json] = ()
    jobs: Sequence[Job] = ()
    steps: Sequence[Job] = ()
    attempts: Sequence[Attempt] = ()
    deliveries: Sequence[Delivery] = ()
    calls: Sequence[Json] = ()  # as the tool got them
    log_counts: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> list[Job]:
        """Jobs and steps: everything that ends."""
        return [*self.jobs, *self.steps]

    def of_client(self, kind: str) -> list[Json]:
        """The client's events of a kind."""
        return [event for event in self.client if event["kind"] == kind]

    def of_nemesis(self, kind: str) -> list[Json]:
        """The nemesis's events of a kind."""
        return [event for event in self.nemesis if event["kind"] == kind]


_JOBS = """
SELECT
    jobs.id, jobs.state,
    coalesce(asked -> 'steps' -> 0 -> 'input' ->> 'prompt', asked -> 'input' ->> 'prompt',
        asked -> 'steps' -> 0 -> 'input' -> 'messages' -> 0 ->> 'content', '') AS prompt,
    coalesce((asked -> 'sampling' ->> 'max_tokens')::int, 0) AS max_tokens, attempt, crashes,
    task = 'flow' AS is_flow, task = 'call_tool' AS is_call, parent_id AS parent, step, coalesce(needs, '{}') AS needs,
    (SELECT count(*) FROM job_events AS noted WHERE noted.job_id = jobs.parent_id
        AND noted.kind = 'step_finished' AND noted.detail ->> 'job' = jobs.id) AS num_noted,
    NOT coalesce((asked -> 'sampling' ->> 'ignore_eos')::bool, false) AS ends,
    extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM completed_at)::float8 AS completed_at,
    extract(epoch FROM deadline_at)::float8 AS deadline_at, output ->> 'text' AS text, error ->> 'code' AS code,
    job_terminal.state AS terminal,
    (SELECT array_agg(kind ORDER BY id) FROM job_events WHERE job_id = jobs.id
        AND kind IN ('succeeded', 'failed', 'cancelled', 'expired')) AS terminal_events,
    (SELECT string_agg(delta, '' ORDER BY n) FROM job_streams, jsonb_array_elements_text(deltas)
        WITH ORDINALITY AS d(delta, n) WHERE job_id = jobs.id) AS stored_text,
    CASE WHEN usage IS NOT NULL THEN ARRAY[(usage ->> 'input_tokens')::bigint, (usage ->> 'output_tokens')::bigint] END
        AS used,
    (SELECT ARRAY[input_tokens, output_tokens] FROM usage_ledger AS ledger WHERE ledger.job_id = jobs.id) AS billed
FROM jobs CROSS JOIN LATERAL (SELECT (payload #>> '{}')::json AS asked) AS sent
    LEFT JOIN job_terminal ON job_terminal.job_id = jobs.id
"""

_ATTEMPTS = """
SELECT job_id AS job, epoch, worker, extract(epoch FROM started_at)::float8 AS started_at,
    extract(epoch FROM ended_at)::float8 AS ended_at, outcome
FROM attempts ORDER BY job_id, epoch
"""

_DELIVERIES = "SELECT id, job_id AS job, type, state, attempts, url FROM webhook_deliveries"

COUNTED = ("stale_finish_refused", "lease_lost", "handed_back", "outcome_lost", "engine_dead")


def read_history(folder: Path, database: dict[str, Any]) -> History:
    """Read a run's folder and its database (``host``, ``user``, ``dbname``)."""
    with psycopg.connect(**database, row_factory=dict_row) as connection:
        rows = [_job(row) for row in connection.execute(_JOBS)]
        attempts = [Attempt(**row) for row in connection.execute(_ATTEMPTS)]
        deliveries = [Delivery(**row) for row in connection.execute(_DELIVERIES)]
    return History(
        client=read_journal(folder / "client.jsonl"),
        hooks=read_journal(folder / "hooks.jsonl"),
        nemesis=read_journal(folder / "nemesis.jsonl"),
        calls=read_journal(folder / "tools.jsonl"),
        jobs=[row for row in rows if row.parent is None],
        steps=[row for row in rows if row.parent is not None],
        attempts=attempts,
        deliveries=deliveries,
        log_counts=count_log_events(sorted((folder / "logs").glob("*.log"))),
    )


def _job(row: dict[str, Any]) -> Job:
    tuples = {name: row[name] and tuple(row[name]) for name in ("used", "billed")}
    lists = {"terminal_events": tuple(row["terminal_events"] or ()), "needs": tuple(row["needs"])}
    return Job(**{**row, **tuples, **lists})


def count_log_events(logs: Sequence[Path]) -> Counter[str]:
    """Count the log events that the checker uses."""
    counts: Counter[str] = Counter()
    for log in logs:
        for event in read_journal_lines(log):
            if event in COUNTED:
                counts[event] += 1
    return counts


def read_journal_lines(log: Path) -> list[str]:
    """Return the event name of each line of a structured log."""
    names = []
    with log.open(errors="replace") as lines:
        for line in lines:
            _, found, rest = line.partition('"event": "')
            if found:
                names.append(rest.partition('"')[0])
    return names
