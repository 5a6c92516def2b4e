"""The life of a version after its registration: aliases, retirement, deletion.

An alias names a version that is not retired. A retired version takes no new jobs; those that it has are run by a worker
that is started for its number. A version that no job is kept of can be deleted; its number is not given again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed
from headrace.store.payloads.prompt_reference import PromptUse
from headrace.store.registry.engine_spec import NATIVE, EngineSpec
from headrace.store.registry.models import DEFAULT_ALIAS, create_alias, point, queue_name, version_of
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.schema.version_states import STATE_SQL, VersionState

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")

ANY: Final = -1
"""Whatever an alias names, and also if it does not exist."""

# All versions of a model, or of all models, with what names them and what they still have to do.
_VERSIONS = text(f"""
SELECT
    model, version, task, digest, dtype, context_window, created_at, retired_at,
    {STATE_SQL} AS state, COALESCE(retired_at, state_at) AS state_at, state_reason, verification,
    engine,
    base_model || '@' || base_version AS base, COALESCE(base_model = model, false) AS shares_weights, quantized_from,
    template - 'messages' AS template,
    ARRAY(
        SELECT alias FROM aliases WHERE model = one.model AND aliases.version = one.version ORDER BY alias
    ) AS aliases,
    COALESCE((
        SELECT sum(jobs) FROM queue_counts WHERE queue = one.model || '@' || one.version
    ), 0)::bigint AS num_queued
FROM model_versions AS one
WHERE CAST(:model AS text) IS NULL OR model = :model
ORDER BY model, version DESC
""")

# Lock a version against its retirement and other changes of its state.
_KEEP = text(
    f"SELECT {STATE_SQL} AS state, state_reason FROM model_versions "
    "WHERE model = :model AND version = :version FOR SHARE"
)

# Lock a version against new aliases.
_LOCK = text("SELECT retired_at FROM model_versions WHERE model = :model AND version = :version FOR UPDATE")

# The version of an alias, locked.
_POINTED = text("SELECT version FROM aliases WHERE model = :model AND alias = :alias FOR UPDATE")

_REMOVE_ALIAS = text("DELETE FROM aliases WHERE model = :model AND alias = :alias")

# The adapters of a version; with ``only_used`` those that are not retired.
_ADAPTERS = text("""
SELECT model || '@' || version FROM model_versions
WHERE base_model = :model AND base_version = :version AND (retired_at IS NULL OR NOT :only_used)
ORDER BY model, version
""")

# Lock the base of an adapter against its retirement.
_KEEP_BASE = text("""
SELECT base.model || '@' || base.version AS name, base.retired_at
FROM model_versions AS one JOIN model_versions AS base
    ON base.model = one.base_model AND base.version = one.base_version
WHERE one.model = :model AND one.version = :version FOR SHARE OF base
""")

_ALIASES = text("SELECT alias FROM aliases WHERE model = :model AND version = :version ORDER BY alias")

_RETIRE = text("UPDATE model_versions SET retired_at = now() WHERE model = :model AND version = :version")

_REVIVE = text("UPDATE model_versions SET retired_at = NULL WHERE model = :model AND version = :version")

# An active rollout of an alias, or with a version as its candidate.
_ROLLOUT = text("""
SELECT id FROM rollouts
WHERE model = :model AND state IN ('running', 'paused') AND (alias = :alias OR candidate_version = :version) LIMIT 1
""")

_WAS_ROLLED_BACK = text("""
SELECT id FROM rollouts WHERE model = :model AND candidate_version = :version AND state = 'rolled_back' LIMIT 1
""")

# Find out whether a job is kept that the version ran or is to run.
_HAS_JOBS = text("SELECT EXISTS (SELECT FROM jobs WHERE model = :model AND model_version = :version)")

# Delete a version with what belongs to it alone. Its number is kept from being given again.
_DELETE = (
    text("UPDATE models SET last_version = GREATEST(last_version, :version) WHERE name = :model"),
    text("DELETE FROM model_sampling WHERE model = :model AND version = :version"),
    text("DELETE FROM model_prices WHERE model = :model AND version = :version"),
    text("""
        WITH gone AS (DELETE FROM model_versions WHERE model = :model AND version = :version RETURNING files)
        DELETE FROM model_files USING gone, jsonb_each_text(gone.files) AS file(name, digest)
        WHERE model_files.digest = file.digest AND NOT EXISTS (
            SELECT FROM model_versions AS other, jsonb_each_text(other.files) AS kept(name, digest)
            WHERE kept.digest = file.digest AND (other.model, other.version) <> (:model, :version)
        )
    """),
)


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A version with its aliases and the number of its jobs that wait. ``engine``: what runs it.

    ``state_at``: since when it has the state. ``state_reason``: why, one sentence, if there is something to say.
    ``verification``: None if it has none, as versions without weights.
    ``base``: the version whose workers run it, as ``name@3``, if it is a LoRA adapter or shares that version's weights.
    ``quantized_from``: the version whose files it has in another number format. ``template``: its default template.
    """

    model: str
    version: int
    task: str
    digest: str
    dtype: str
    context_window: int
    created_at: datetime
    retired_at: datetime | None
    state: VersionState
    state_at: datetime
    state_reason: str | None
    verification: VerificationReport | None
    engine: EngineSpec
    base: str | None
    shares_weights: bool
    quantized_from: str | None
    template: PromptUse | None
    aliases: tuple[str, ...]
    num_queued: int


def list_versions(db: Database, model: str | None = None) -> list[VersionSummary]:
    """Return all versions, retired ones too, by model and newest first."""
    with db.autocommit() as connection:
        rows = connection.execute(_VERSIONS, {"model": model}).mappings().all()
    return [
        VersionSummary(
            **{
                **row,
                "aliases": tuple(row["aliases"]),
                "engine": NATIVE if row["engine"] is None else EngineSpec.model_validate(row["engine"]),
                "state": VersionState(row["state"]),
                "verification": row["verification"] and VerificationReport.model_validate(row["verification"]),
                "template": row["template"] and PromptUse.model_validate(row["template"]),
            }
        )
        for row in rows
    ]


def set_alias(
    db: Database,
    model: str,
    alias: str,
    version: int,
    actor: str,
    *,
    expected: int = ANY,
    tenant_id: str | None = None,
    is_early: bool = False,
    force: bool = False,
) -> None:
    """Set ``model@alias`` to this version. New jobs use it after at most two seconds; accepted jobs keep theirs.

    ``expected``: the version that the alias must name before, 0 for a new alias. ``tenant_id``: the actor's tenant, for
    the audit log. ``is_early``: the version may still have to be verified, because its worker starts now. ``force``:
    also if a rollout of the version was rolled back. Raises NotFound if the version does not exist or is retired,
    Conflict if it is not ready, or while a rollout divides the alias, and
    PreconditionFailed.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidRequest(
            f"an alias begins with a letter, then letters, digits and . _ -, not {alias!r}", param="alias"
        )
    with db.begin(tenant_id=tenant_id) as connection:
        version_of(connection, model, version)
        check_ready(connection, model, version, is_early=is_early)
        before = _check_alias(connection, model, alias, expected)
        _refuse_rollout(connection, model, alias=alias)
        if not force:
            refuse_rolled_back(connection, model, version)
        if expected != 0:
            point(connection, model, alias, version)
        elif not create_alias(connection, model, alias, version):
            # Two callers that create one alias have both read that there is none. The later insert decides.
            raise _alias_changed(f"{model}@{alias} exists since a moment ago")
        detail = {"version": version} if before is None else {"version": version, "from_version": before}
        name = f"{model}@{alias}"
        record(connection, tenant_id, actor, "model.alias_set", name, detail, before=before, after=version)


def remove_alias(
    db: Database, model: str, alias: str, actor: str, *, expected: int = ANY, tenant_id: str | None = None
) -> None:
    """Remove an alias. Raises NotFound, PreconditionFailed, and Conflict for ``default``, which every model has."""
    if alias == DEFAULT_ALIAS:
        raise Conflict(f"{model}@{alias} is what {model} means: set it to another version", code="version_in_use")
    with db.begin(tenant_id=tenant_id) as connection:
        before = _check_alias(connection, model, alias, expected)
        if before is None:
            raise NotFound(f"{model} has no alias {alias!r}", code="alias_not_found", param="alias")
        _refuse_rollout(connection, model, alias=alias)
        connection.execute(_REMOVE_ALIAS, {"model": model, "alias": alias})
        name = f"{model}@{alias}"
        record(connection, tenant_id, actor, "model.alias_removed", name, {"from_version": before}, before=before)


def retire(db: Database, model: str, version: int, actor: str, *, tenant_id: str | None = None) -> None:
    """Take a version out of use for new jobs; once more changes nothing. Raises NotFound, and Conflict while an alias
    or an adapter that is not retired names it.
    """
    values = {"model": model, "version": version}
    with db.begin(tenant_id=tenant_id) as connection:
        version_of(connection, model, version)
        if connection.execute(_LOCK, values).scalar_one() is not None:
            return
        _refuse_named(connection, values, "retired")
        _refuse_rollout(connection, model, version=version)
        _refuse_base(connection, values, only_used=True)
        connection.execute(_RETIRE, values)
        record(connection, tenant_id, actor, "model.retired", queue_name(model, version), {})


def revive(db: Database, model: str, version: int, actor: str, *, tenant_id: str | None = None) -> None:
    """Take a retired version back into use; one that is not retired stays as it is.

    Raises NotFound, and Conflict for an adapter of a retired base.
    """
    values = {"model": model, "version": version}
    with db.begin(tenant_id=tenant_id) as connection:
        version_of(connection, model, version)
        if connection.execute(_LOCK, values).scalar_one() is None:
            return
        base = connection.execute(_KEEP_BASE, values).one_or_none()
        if base is not None and base.retired_at is not None:
            raise Conflict(f"its base {base.name} is retired: revive that first", code="version_in_use")
        connection.execute(_REVIVE, values)
        record(connection, tenant_id, actor, "model.revived", queue_name(model, version), {})


def delete_version(db: Database, model: str, version: int, actor: str) -> None:
    """Delete a retired version that no job is kept of. Raises NotFound and Conflict."""
    values = {"model": model, "version": version}
    name = queue_name(model, version)
    with db.begin() as connection:
        found = version_of(connection, model, version)
        if connection.execute(_LOCK, values).scalar_one() is None:
            raise Conflict(f"{name} is in use: retire it first", code="version_in_use")
        _refuse_named(connection, values, "deleted")
        _refuse_base(connection, values, only_used=False)
        if connection.execute(_HAS_JOBS, values).scalar_one():
            raise Conflict(
                f"{name} has jobs that are kept: delete it when retention has forgotten them", code="version_in_use"
            )
        for statement in _DELETE:
            connection.execute(statement, values)
        record(connection, None, actor, "model.deleted", name, {"digest": found.digest})


def _check_alias(connection: Connection, model: str, alias: str, expected: int) -> int | None:
    """Lock the alias and return its version, None if it does not exist. Raises PreconditionFailed."""
    before: int | None = connection.execute(_POINTED, {"model": model, "alias": alias}).scalar_one_or_none()
    if expected not in {ANY, before or 0}:
        now = f"names version {before}" if before else "does not exist"
        raise _alias_changed(f"{model}@{alias} {now}")
    return before


def _alias_changed(state: str) -> PreconditionFailed:
    return PreconditionFailed(f"{state}: read it again, then decide", code="alias_changed")


def check_ready(connection: Connection, model: str, version: int, *, is_early: bool = False) -> None:
    """Lock the version against its retirement. Raises NotFound if it is retired, Conflict if it is not ready.

    ``is_early``: a version that is still to be verified is ready enough.
    """
    name = queue_name(model, version)
    state, reason = connection.execute(_KEEP, {"model": model, "version": version}).one()
    if state == VersionState.RETIRED:
        raise NotFound(f"{name} is retired", code="model_not_found", param="version")
    if state == VersionState.REJECTED:
        raise Conflict(f"{name} has failed its verification: {reason}", code="version_not_ready", param="version")
    if state != VersionState.READY and not is_early:
        raise Conflict(
            f"{name} is not verified yet: start a worker for it, which verifies it (`headrace worker --model {name}`)",
            code="version_not_ready",
            param="version",
        )


def refuse_rolled_back(connection: Connection, model: str, version: int) -> None:
    """Raise Conflict if a rollout of this version was rolled back."""
    found = connection.execute(_WAS_ROLLED_BACK, {"model": model, "version": version}).scalar_one_or_none()
    if found is not None:
        raise Conflict(
            f"{queue_name(model, version)} was rolled back ({found}): use `force` if it is right now",
            code="version_rolled_back",
        )


def _refuse_rollout(
    connection: Connection, model: str, *, alias: str | None = None, version: int | None = None
) -> None:
    """Raise Conflict if an active rollout divides the alias, or has the version as its candidate."""
    values = {"model": model, "alias": alias, "version": version}
    if (rollout := connection.execute(_ROLLOUT, values).scalar_one_or_none()) is not None:
        raise Conflict(f"the rollout {rollout} is active: end it first, with promote or abort", code="rollout_active")


def _refuse_named(connection: Connection, values: Mapping[str, object], what: str) -> None:
    if aliases := connection.execute(_ALIASES, values).scalars().all():
        names = " and ".join(f"{values['model']}@{alias}" for alias in aliases)
        raise Conflict(
            f"{names} means this version, so it cannot be {what}: move or remove the alias", code="version_in_use"
        )


def _refuse_base(connection: Connection, values: Mapping[str, object], *, only_used: bool) -> None:
    if adapters := connection.execute(_ADAPTERS, {**values, "only_used": only_used}).scalars().all():
        state = "retire" if only_used else "delete"
        raise Conflict(f"it is the base of {' and '.join(adapters)}: {state} that first", code="version_in_use")
