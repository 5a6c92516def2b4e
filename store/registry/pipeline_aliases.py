"""Aliases of pipelines with a rollout: what a rollout begins with, and its promotion."""

from sqlalchemy import Connection, text

from headrace.store.errors import Conflict, InvalidRequest, NotFound

# The pipeline, locked, so that its alias is not moved while a rollout starts.
_LOCK = text("SELECT id FROM prompts WHERE id = :id AND tenant_id = :tenant_id AND kind = 'pipeline' FOR UPDATE")

_ALIAS = text("SELECT version, canary_version FROM prompt_aliases WHERE prompt_id = :id AND alias = :alias")

_HAS_VERSION = text("SELECT EXISTS (SELECT FROM prompt_versions WHERE prompt_id = :id AND version = :version)")

_POINT = text("""
UPDATE prompt_aliases SET version = :version, canary_version = NULL, canary_percent = NULL
WHERE prompt_id = :id AND alias = :alias
""")

_ROLLOUT = text("""
SELECT id FROM rollouts
WHERE model = :id AND state IN ('running', 'paused') AND (CAST(:alias AS text) IS NULL OR alias = :alias) LIMIT 1
""")


def stable_version(connection: Connection, tenant_id: str, pipeline_id: str, alias: str, candidate: int) -> int:
    """Return the version that the alias of a tenant's pipeline names, with the pipeline locked.

    Raises NotFound, InvalidRequest without the alias, and Conflict if it has a canary or names the candidate already.
    """
    named = {"id": pipeline_id, "alias": alias}
    if connection.execute(_LOCK, {**named, "tenant_id": tenant_id}).one_or_none() is None:
        raise NotFound(f"no pipeline {pipeline_id[:80]}", param="pipeline")
    row = connection.execute(_ALIAS, named).one_or_none()
    if row is None:
        raise InvalidRequest(
            f"the pipeline has no alias {alias[:64]}: let one name the stable version first", param="alias"
        )
    if row.canary_version is not None:
        raise Conflict(f"the alias {alias} has a canary: set it without one first", code="rollout_active")
    if row.version == candidate:
        raise Conflict(f"the alias {alias} names version {candidate} already", code="rollout_not_needed")
    if not connection.execute(_HAS_VERSION, {"id": pipeline_id, "version": candidate}).scalar_one():
        raise NotFound(f"the pipeline has no version {candidate}", param="version")
    return int(row.version)


def point(connection: Connection, pipeline_id: str, alias: str, version: int) -> None:
    """Let an alias that has a rollout name this version."""
    connection.execute(_POINT, {"id": pipeline_id, "alias": alias, "version": version})


def refuse_rollout(connection: Connection, pipeline_id: str, alias: str | None) -> None:
    """Raise Conflict if a rollout divides the jobs of the alias; without one, of any alias."""
    found = connection.execute(_ROLLOUT, {"id": pipeline_id, "alias": alias}).scalar_one_or_none()
    if found is not None:
        raise Conflict(f"the rollout {found} is active: end it first, with promote or abort", code="rollout_active")
