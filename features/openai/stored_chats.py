"""Chat completions that their caller asked to store: jobs with a mark, which are listed once they have succeeded.

Their contents are those of the job, and are kept as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Select, or_, text
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Gone, NotFound
from headrace.store.jobs.erasure import check_not_needed, erase, lock_job
from headrace.store.jobs.job_rows import Job, job_of, select_jobs
from headrace.store.json_text import dump_json
from headrace.store.schema import tables
from headrace.store.seal import SealContext

PREFIX = "chatcmpl-"
_JOB_PREFIX = "job_"

# Literally the condition of the indexes: with bound values Postgres may not use them.
_IS_LISTED = text("jobs.is_stored_chat AND jobs.state = 'succeeded' AND jobs.output_purged_at IS NULL")
_IS_STORED = text("jobs.is_stored_chat AND jobs.state = 'succeeded'")

# Replaces the metadata of a stored chat, unless its contents were erased.
_UPDATE = text("""
UPDATE jobs SET metadata = CAST(:metadata AS jsonb)
WHERE tenant_id = :tenant_id AND id = :job_id AND is_stored_chat AND state = 'succeeded'
    AND input_purged_at IS NULL AND output_purged_at IS NULL
""")

# Takes the mark of a stored chat completion away.
_UNLIST = text("""
UPDATE jobs SET is_stored_chat = false
WHERE tenant_id = :tenant_id AND id = :job_id AND is_stored_chat AND state = 'succeeded' AND output_purged_at IS NULL
RETURNING id
""")


@dataclass(frozen=True, slots=True)
class ChatFilter:
    """Which chats to list: of a model, or one of its versions, with these pairs in their metadata."""

    model: str | None = None
    model_version: int | None = None
    metadata: Mapping[str, str] | None = None


def chat_id(job_id: str) -> str:
    """Return the id of the job's chat completion."""
    return PREFIX + job_id.removeprefix(_JOB_PREFIX)


def job_id_of(chat_id: str) -> str:
    """Return the id of the chat completion's job; raise NotFound if the format is wrong."""
    if not chat_id.startswith(PREFIX):
        raise not_found(chat_id)
    return _JOB_PREFIX + chat_id.removeprefix(PREFIX)


def not_found(chat_id: str) -> NotFound:
    """Return the error of a chat completion that is not stored."""
    return NotFound(f"no stored chat completion {chat_id[:80]}: one is kept if its request has `store` true")


def get(db: Database, tenant_id: str, chat_id: str) -> Job:
    """Return the job of a stored chat completion with an answer; raise NotFound, or Gone after its retention."""
    jobs = tables.jobs.c
    wanted = select_jobs().where(jobs.tenant_id == tenant_id, jobs.id == job_id_of(chat_id), _IS_STORED)
    with db.autocommit(tenant_id=tenant_id) as connection:
        row = connection.execute(wanted).mappings().one_or_none()
    if row is None:
        raise not_found(chat_id)
    if row["output_purged_at"] is not None:
        raise gone(chat_id)
    return job_of(row, db.seal)


def gone(chat_id: str) -> Gone:
    """Return the error of a chat completion of which a part was erased after its retention."""
    return Gone(f"the contents of {chat_id[:80]} are no longer kept")


def list_chats(
    db: Database, tenant_id: str, wanted: ChatFilter, *, limit: int, after: str | None = None, descending: bool = False
) -> list[Job]:
    """Return at most ``limit`` jobs of stored chat completions by age, after the chat's id ``after``.

    Read in the order of an index. Those that the metadata leaves out are read too.
    """
    jobs = tables.jobs.c
    order = jobs.id.desc() if descending else jobs.id
    statement = select_jobs().where(jobs.tenant_id == tenant_id, _IS_LISTED).order_by(order).limit(limit)
    if wanted.model is not None:
        statement = statement.where(jobs.model == wanted.model)
    if wanted.model_version is not None:
        statement = statement.where(jobs.model_version == wanted.model_version)
    if after is not None:
        last = job_id_of(after)
        statement = statement.where(jobs.id < last if descending else jobs.id > last)
    statement = _with_metadata(db, tenant_id, statement, wanted.metadata)
    with db.autocommit(tenant_id=tenant_id) as connection:
        return [job_of(row, db.seal) for row in connection.execute(statement).mappings()]


def _with_metadata(
    db: Database, tenant_id: str, statement: Select[tuple[object, ...]], metadata: Mapping[str, str] | None
) -> Select[tuple[object, ...]]:
    if not metadata:
        return statement
    filters = db.seal.metadata_filters(tenant_id, metadata)
    return statement.where(or_(*(tables.jobs.c.metadata.cast(JSONB).contains(one) for one in filters)))


def set_metadata(db: Database, tenant_id: str, chat_id: str, metadata: Mapping[str, str]) -> None:
    """Replace the metadata of a stored chat completion. Raises NotFound, Gone."""
    job_id = job_id_of(chat_id)
    sealed = db.seal.seal_metadata(metadata, SealContext(tenant_id, "jobs", "metadata", job_id))
    values = {"tenant_id": tenant_id, "job_id": job_id, "metadata": dump_json(sealed)}
    with db.begin(tenant_id=tenant_id) as connection:
        is_done = connection.execute(_UPDATE, values).rowcount > 0
    if not is_done:
        get(db, tenant_id, chat_id)
        raise gone(chat_id)


def delete(db: Database, tenant_id: str, chat_id: str, *, actor: str, request_id: str | None = None) -> None:
    """Delete a stored chat completion: erase its job, which is not listed any more.

    Raises NotFound if the tenant has no such chat completion, Conflict while its batch has not ended.
    """
    job_id = job_id_of(chat_id)
    values = {"tenant_id": tenant_id, "job_id": job_id}
    with db.begin(tenant_id=tenant_id) as connection:
        row = lock_job(connection, tenant_id, job_id)
        if row is None or connection.execute(_UNLIST, values).first() is None:
            raise not_found(chat_id)
        check_not_needed(job_id, row.needed_by)
        erase(connection, [job_id])
        record(connection, tenant_id, actor, "chat.deleted", chat_id, {}, request_id)
