"""The bound of a model for the quality of its versions: read and changed by operators, kept by verifications."""

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.json_text import dump_json
from headrace.store.registry.quality_report import QualityBound

_READ = text("SELECT quality_bound FROM models WHERE name = :model")

_LOCK = text("SELECT quality_bound FROM models WHERE name = :model FOR UPDATE")

_SET = text("UPDATE models SET quality_bound = CAST(:bound AS jsonb) WHERE name = :model")


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


def _plain(bound: QualityBound | None) -> dict[str, float] | None:
    return None if bound is None else bound.model_dump(exclude_none=True)


def _bound(connection: Connection, model: str, *, is_locked: bool) -> QualityBound | None:
    row = connection.execute(_LOCK if is_locked else _READ, {"model": model}).one_or_none()
    if row is None:
        raise NotFound(f"no model {model!r}", code="model_not_found", param="model")
    return None if row.quality_bound is None else QualityBound.model_validate(row.quality_bound)
