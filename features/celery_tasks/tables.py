"""The table of Celery tasks. The rules are those of ``store.schema.tables``."""

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table, text
from sqlalchemy.dialects.postgresql import JSONB

from headrace.store.schema.tables import metadata, of_its_tenant, timestamp

celery_tasks = Table(
    "celery_tasks",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("tenant_id", String, ForeignKey("tenants.id"), nullable=False),
    # Celery's id of the task, which the user's app has chosen.
    Column("task_id", String, nullable=False),
    # The task's message, as the user's worker needs it again; null once the task has ended there.
    Column("message", JSONB),
    # How often a worker took it, and when it may be taken again.
    Column("takes", Integer, nullable=False, server_default=text("0")),
    timestamp("due_at"),
    timestamp("confirmed_at"),
    of_its_tenant("job_id", "jobs"),
    Index("uq_celery_tasks_tenant_id_task_id", "tenant_id", "task_id", unique=True),
    Index(None, "tenant_id", "job_id"),
    Index("ix_celery_tasks_open", "tenant_id", "due_at", postgresql_where=text("confirmed_at IS NULL")),
)
