"""Jobs with a known answer, and the invariants of each ended job, whatever fault happened."""

from collections.abc import Sequence

from headrace.models.fakes.fake import next_token
from headrace.store.jobs.jobs import Job
from headrace.store.schema.job_states import JobState
from tests.reliability.client import Seen
from tests.reliability.rig import Stack

TERMINAL = tuple(state for state in JobState if state.is_terminal)


def answer(prompt: str, max_tokens: int) -> str:
    """The output of the model without weights, computed here token by token."""
    asked, said = list(prompt.encode()), list[int]()
    while len(said) < max_tokens:
        said.append(next_token(asked, said, ends=False))
    return bytes(said).decode()


def check_answer(job: Job, prompt: str, max_tokens: int) -> None:
    """The job succeeded with the same output as without faults."""
    assert job.state is JobState.SUCCEEDED, (job.id, job.state, job.error, job.attempt)
    assert job.output is not None
    assert job.output["text"] == answer(prompt, max_tokens), job.id
    assert job.usage is not None
    assert job.usage["output_tokens"] == max_tokens


def check_stream(seen: Seen, job: Job) -> None:
    """The reader saw every event once, in order, and in the end the very text that is stored."""
    assert seen.is_ordered, seen.cursors
    assert seen.end is not None
    assert seen.end["status"] == job.state
    assert job.output is not None
    assert seen.text == job.output["text"], (job.id, seen.num_restarts, seen.num_connections)


def check_ended_once(stack: Stack, job_ids: Sequence[str]) -> dict[str, int]:
    """Each job has one terminal row of its last attempt, one terminal event, no open attempt, and one ledger entry.

    Returns the number of violations, as figures for a report.
    """
    rows = stack.query(
        """
        SELECT jobs.id, jobs.state, jobs.epoch, ends.state AS ended_as, ends.epoch AS ended_in,
            (SELECT count(*) FROM job_events WHERE job_id = jobs.id AND kind = ANY(:kinds)) AS num_ends,
            (SELECT count(*) FROM attempts WHERE job_id = jobs.id AND ended_at IS NULL) AS num_open,
            jobs.usage, billed.input_tokens, billed.cached_tokens, billed.output_tokens
        FROM jobs LEFT JOIN job_terminal AS ends ON ends.job_id = jobs.id
            LEFT JOIN usage_ledger AS billed ON billed.job_id = jobs.id
        WHERE jobs.id = ANY(:ids)
        """,
        ids=list(job_ids),
        kinds=list(TERMINAL),
    )
    for row in rows:
        assert (row.ended_as, row.ended_in, row.num_ends, row.num_open) == (row.state, row.epoch, 1, 0), row
        counted = {name: getattr(row, name) for name in ("input_tokens", "cached_tokens", "output_tokens")}
        assert counted.items() <= (row.usage or dict.fromkeys(counted)).items(), row
    figures = {
        "lost": len(set(job_ids)) - len(rows),
        "stuck": sum(row.state not in TERMINAL or row.num_open > 0 for row in rows),
        "duplicate_terminal": sum(row.num_ends > 1 for row in rows),
    }
    assert not any(figures.values()), figures
    return figures
