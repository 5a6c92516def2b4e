"""The versions that a worker may serve, with their needs. Workers of a base run the jobs of its adapters."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text

from headrace.store.db.database import Database
from headrace.store.registry.engine_spec import EngineSpec
from headrace.store.registry.verification_report import VerificationReport

PROCESS_START_S = 4.0
"""From the start of a worker process to the begin of its load: mostly imports. An estimate."""

# Versions without those that are rejected; adapters too, because their jobs count for their base.
_VERSIONS = text("""
SELECT model, version, model || '@' || version AS queue, source, dtype, engine, verification, created_at,
    state = 'registered' AND retired_at IS NULL AS is_unverified, base_model || '@' || base_version AS base
FROM model_versions WHERE state <> 'rejected' ORDER BY model, version
""")


@dataclass(frozen=True, slots=True)
class HostedVersion:
    """A version that a worker may serve. ``adapters``: queues of its LoRA adapters, which its worker serves too.

    ``memory_bytes`` and ``load_s``: what its verification measured; None before. ``source``: its folder, or "".
    ``is_unverified``: its first worker verifies it.
    """

    model: str
    version: int
    queue: str
    source: str
    dtype: str
    engine: EngineSpec | None
    memory_bytes: int | None
    load_s: float | None
    is_unverified: bool
    created_at: datetime
    adapters: tuple[str, ...] = ()

    @property
    def start_s(self) -> float | None:
        """Seconds from the start of a worker until it takes jobs, by what its verification measured; None before."""
        return None if self.load_s is None else PROCESS_START_S + self.load_s

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that its worker serves."""
        return (self.queue, *self.adapters)


def read_hosted_versions(db: Database) -> list[HostedVersion]:
    """Return every version that is not rejected and no adapter, sorted by name. Raises Unavailable."""
    with db.autocommit() as connection:
        rows = connection.execute(_VERSIONS).all()
    adapters: dict[str, list[str]] = {}
    for row in rows:
        if row.base is not None:
            adapters.setdefault(row.base, []).append(row.queue)
    return [_hosted(row, tuple(adapters.get(row.queue, ()))) for row in rows if row.base is None]


def _hosted(row: Row[Any], adapters: tuple[str, ...]) -> HostedVersion:
    report = None if row.verification is None else VerificationReport.model_validate(row.verification)
    return HostedVersion(
        model=row.model,
        version=row.version,
        queue=row.queue,
        source=row.source,
        dtype=row.dtype,
        engine=None if row.engine is None else EngineSpec.model_validate(row.engine),
        memory_bytes=report.memory_bytes if report else None,
        load_s=report.load_s if report else None,
        is_unverified=row.is_unverified,
        created_at=row.created_at,
        adapters=adapters,
    )
