"""The bound of a model for the quality of its versions: read and changed by operators, kept by verifications.

A version on an inference server is verified without a measurement. Its report is held to the bound when an alias or a
rollout would give it jobs.
"""

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database, dump_json
from headrace.store.errors import Conflict, NotFound
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import queue_name
from headrace.store.registry.quality_report import BELOW_BOUND, NOT_MEASURED, QualityBound, QualityReport, outside

_READ = text("SELECT quality_bound FROM models WHERE name = :model")

_LOCK = text("SELECT quality_bound FROM models WHERE name = :model FOR UPDATE")

_SET = text("UPDATE models SET quality_bound = CAST(:bound AS jsonb) WHERE name = :model")

# The bound, and the report of a version on a server. An adapter has no report of its own.
_SERVED = text("""
SELECT quality_bound, engine ->> 'kind' AS kind, verification -> 'quality' AS report
FROM model_versions AS one JOIN models ON models.name = one.model
WHERE one.model = :model AND one.version = :version
    AND quality_bound IS NOT NULL AND engine IS NOT NULL AND base_model IS NULL
""")

# Keeps a report that was measured after the verification.
_KEEP = text("""
UPDATE model_versions SET verification = (verification - 'not_measured') || jsonb_build_object(
    'quality', CAST(:report AS jsonb)
)
WHERE model = :model AND version = :version AND verification IS NOT NULL AND state = 'ready'
""")


def read_bound(db: Database, model: str) -> QualityBound | None:
    """Return the bound of a model, or None. Raises NotFound."""
    with db.autocommit() as connection:
        return _bound(connection, model, is_locked=False)


def set_bound(
    db: Database, model: str, bound: QualityBound | None, actor: str, *, tenant_id: str | None = None
) -> None:
    """Set or remove the bound of a model. It applies to verifications that begin from now on. Raises NotFound."""
    with db.begin(tenant_id=tenant_id) as connection:
        before = _bound(connection, model, is_locked=True)
        after = _plain(bound)
        connection.execute(_SET, {"model": model, "bound": None if bound is None else dump_json(after)})
        # As texts, because the canonical form of the audit log has no fractions.
        detail = {name: str(value) for name, value in (after or {}).items()}
        record(
            connection, tenant_id, actor, "model.quality_bound_set", model, detail, before=_plain(before), after=after
        )


def keep_report(db: Database, model: str, version: int, report: QualityReport) -> bool:
    """Store the report of a verified version that was measured later; False if the version is not ready."""
    values = {"model": model, "version": version, "report": dump_json(report.model_dump(mode="json"))}
    with db.begin() as connection:
        return connection.execute(_KEEP, values).rowcount == 1


def check_served_quality(connection: Connection, model: str, version: int) -> None:
    """Raise Conflict if a version on an inference server may get no jobs by its model's bound.

    It must have been measured if its server shows log-probabilities of a prompt (vLLM). Figures that a server does not
    show are not judged. Versions on Headrace's engine were judged in their verification.
    """
    row = connection.execute(_SERVED, {"model": model, "version": version}).one_or_none()
    if row is None:
        return
    name = queue_name(model, version)
    if row.report is None:
        if row.kind == EngineKind.VLLM:
            raise Conflict(
                f"{model} has a quality bound, and {name} was not measured: `headrace models measure {name} --against "
                "NAME@VERSION`, with a version of the same tokenizer on Headrace's engine",
                code=NOT_MEASURED,
                param="version",
            )
        return
    found = outside(
        QualityReport.model_validate(row.report), QualityBound.model_validate(row.quality_bound), shown=True
    )
    if found is not None:
        raise Conflict(f"the quality of {name} is outside the bound of {model}: {found}", code=BELOW_BOUND)


def _plain(bound: QualityBound | None) -> dict[str, float] | None:
    return None if bound is None else bound.model_dump(exclude_none=True)


def _bound(connection: Connection, model: str, *, is_locked: bool) -> QualityBound | None:
    row = connection.execute(_LOCK if is_locked else _READ, {"model": model}).one_or_none()
    if row is None:
        raise NotFound(f"no model {model!r}", code="model_not_found", param="model")
    return None if row.quality_bound is None else QualityBound.model_validate(row.quality_bound)
