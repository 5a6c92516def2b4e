"""The rows of Celery tasks: stored with the job, taken once it has ended, until they are confirmed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, text

from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.jobs.acceptance import NewJob
from headrace.store.jobs.answered_calls import AnsweredCall
from headrace.store.jobs.face_row import FaceRow
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext, open_columns, seal_columns

AGAIN_S = 30.0
"""A message that was taken and not confirmed comes again after this time, then after twice as long each time."""

_LONGEST_S = 3600.0

_ADD = text("""
INSERT INTO celery_tasks (job_id, tenant_id, task_id, message)
SELECT job_id, tenant_id, task_id, message
FROM json_to_recordset(CAST(:rows AS json)) AS r(job_id text, tenant_id text, task_id text, message jsonb)
""")

_READ = text("""
SELECT task_id, job_id, confirmed_at IS NOT NULL AS is_confirmed FROM celery_tasks
WHERE tenant_id = :tenant_id AND task_id = :task_id
""")

# Take messages of ended jobs. Whether a job has ended is read from its row, so that the statements that end jobs have
# nothing to do for Celery; the subquery is one step in the index of ``jobs`` for each open task.
_TAKE = text("""
WITH due AS (
    SELECT job_id FROM celery_tasks AS task
    WHERE tenant_id = :tenant_id AND confirmed_at IS NULL AND (due_at IS NULL OR due_at <= now())
        AND (SELECT completed_at FROM jobs WHERE jobs.tenant_id = task.tenant_id AND jobs.id = task.job_id) IS NOT NULL
    LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE celery_tasks AS task
SET takes = takes + 1, due_at = now() + make_interval(secs => LEAST(:again_s * power(2, LEAST(takes, 20)), :longest_s))
FROM due WHERE task.job_id = due.job_id
RETURNING task.job_id, task.tenant_id, task.task_id, task.message
""")

_CONFIRM = text("""
UPDATE celery_tasks SET confirmed_at = now(), message = NULL
WHERE tenant_id = :tenant_id AND task_id = :task_id AND confirmed_at IS NULL
""")


@dataclass(frozen=True, slots=True)
class TaskJob:
    """The job of a task. ``is_confirmed``: the task has ended in the user's app, so its message comes no more."""

    task_id: str
    job_id: str
    is_confirmed: bool


@dataclass(frozen=True, slots=True)
class NewCeleryTask(FaceRow):
    """The row to store with a new job. ``message``: a JSON object that nothing here reads."""

    task_id: str
    message: Mapping[str, Any] = field(repr=False)

    @property
    def is_kept(self) -> bool:
        """As ``FaceRow.is_kept``: the user's worker reads the output after the end."""
        return True

    @property
    def conversation(self) -> str | None:
        """As ``FaceRow.conversation``: none."""
        return None

    @property
    def job_before(self) -> str | None:
        """As ``FaceRow.job_before``: none."""
        return None

    @property
    def answered_calls(self) -> Sequence[AnsweredCall]:
        """As ``FaceRow.answered_calls``: none."""
        return ()

    def digested(self, asked: dict[str, Any]) -> dict[str, Any]:
        """As ``FaceRow.digested``: a message that was delivered twice is the same request."""
        return asked

    def texts(self) -> tuple[Any, Any]:
        """As ``FaceRow.texts``: the message goes back to its sender, and to no model."""
        return [], {}

    def with_texts(self, first: Any, second: Any) -> Self:
        """As ``FaceRow.with_texts``."""
        return self

    @classmethod
    def write(cls, connection: Connection, jobs: Sequence[NewJob], seal: Seal) -> None:
        """As ``FaceRow.write``."""
        made = [(job, job.response) for job in jobs if isinstance(job.response, cls)]
        rows = [
            {
                "job_id": job.id,
                "tenant_id": job.tenant_id,
                "task_id": task.task_id,
                **seal_columns(seal, _place(job.tenant_id, job.id), {"message": dict(task.message)}),
            }
            for job, task in made
        ]
        connection.execute(_ADD, {"rows": dump_json(rows)})


def _place(tenant_id: str, job_id: str) -> SealContext:
    return SealContext(tenant_id, "celery_tasks", "message", job_id)


def find(db: Database, tenant_id: str, task_id: str) -> TaskJob | None:
    """Return the job of a task, None if it has none."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(_READ, {"tenant_id": tenant_id, "task_id": task_id}).one_or_none()
    return None if row is None else TaskJob(row.task_id, row.job_id, row.is_confirmed)


def get(db: Database, tenant_id: str, task_id: str) -> TaskJob:
    """Return the job of a task. Raises NotFound."""
    found = find(db, tenant_id, task_id)
    if found is None:
        raise NotFound(f"no job has the Celery task id {task_id}")
    return found


def take_ended(db: Database, tenant_id: str, limit: int) -> list[tuple[str, Any]]:
    """Take tasks whose jobs have ended, and that are not confirmed; return each one's id and message.

    Each comes again after ``AGAIN_S`` and more, until it is confirmed. Raises CannotOpen.
    """
    values = {"tenant_id": tenant_id, "limit": limit, "again_s": AGAIN_S, "longest_s": _LONGEST_S}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_TAKE, values).mappings().all()
    return [(row["task_id"], _opened(row, db.seal)) for row in rows]


def _opened(row: RowMapping, seal: Seal) -> Any:
    return open_columns(seal, _place(row["tenant_id"], row["job_id"]), row, "message")["message"]


def confirm(db: Database, tenant_id: str, task_id: str) -> None:
    """Note that the task has ended in the user's app; its message is forgotten. A second time changes nothing."""
    with db.autocommit(tenant_id=tenant_id) as connection:
        connection.execute(_CONFIRM, {"tenant_id": tenant_id, "task_id": task_id})
