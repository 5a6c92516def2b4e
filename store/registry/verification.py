"""The verification of a model version before its first job: who verifies it, what was found, and the verdict.

One worker at a time holds the lease of a registered version; another one takes it when the lease is over. The verdict
is written by the holder of the lease alone, and with it the report. A version is verified once: a later start of a
worker compares the digest of its files again, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import NotFound
from headrace.store.json_text import dump_json
from headrace.store.registry.models import queue_name
from headrace.store.registry.quality_report import QualityBound
from headrace.store.registry.verification_report import GoldenAnswer, VerificationReport, golden_answers
from headrace.store.schema.version_states import VersionState


@dataclass(frozen=True, slots=True)
class VersionStanding:
    """A version, as a worker finds it that wants to serve it. ``is_ours``: this worker holds the lease and verifies it.

    ``state`` is the stored state, so a retired version has one too. ``bound``: what the quality report must keep.
    """

    state: VersionState
    reason: str | None
    golden: tuple[GoldenAnswer, ...]
    is_ours: bool
    bound: QualityBound | None = None


# Take the lease of a registered version if nobody holds it, and return the version as it was before.
_CLAIM = text("""
WITH ours AS (
    UPDATE model_versions SET verifier = :worker, verifying_until = now() + make_interval(secs => :lease_s)
    WHERE model = :model AND version = :version AND state = 'registered'
        AND (verifying_until IS NULL OR verifying_until <= now() OR verifier = :worker)
    RETURNING version
)
SELECT state, state_reason, golden, EXISTS (SELECT FROM ours) AS is_ours,
    (SELECT quality_bound FROM models WHERE name = :model) AS bound
FROM model_versions
WHERE model = :model AND version = :version
""")

_OURS = "model = :model AND version = :version AND state = 'registered' AND verifier = :worker"

_RENEW = text(f"""
UPDATE model_versions SET verifying_until = now() + make_interval(secs => :lease_s) WHERE {_OURS}
""")

_GIVE_UP = text(f"""
UPDATE model_versions SET verifier = NULL, verifying_until = NULL, state_reason = :reason WHERE {_OURS}
""")

_CONCLUDE = text(f"""
UPDATE model_versions SET
    state = :state, state_at = now(), state_reason = :reason, verification = CAST(:report AS jsonb),
    verifier = NULL, verifying_until = NULL
WHERE {_OURS}
""")

# Note that an inference server was accepted. No lease: nothing is computed, and each worker asks the server.
_SERVED = text("""
UPDATE model_versions SET
    state = 'ready', state_at = now(), state_reason = NULL, verification = CAST(:report AS jsonb),
    verifier = NULL, verifying_until = NULL
WHERE model = :model AND version = :version AND state = 'registered'
""")


class Verification:
    """The verification of one version by one worker. Every method is one statement; any thread may call it."""

    def __init__(self, db: Database, model: str, version: int, *, worker: str, lease_s: float) -> None:
        self._db = db
        self.model, self.version = model, version
        self.name = queue_name(model, version)
        self.worker = worker
        self.lease_s = lease_s
        self._values = {"model": model, "version": version, "worker": worker, "lease_s": lease_s}

    def on(self, db: Database) -> "Verification":
        """Return the same verification over another connection."""
        return Verification(db, self.model, self.version, worker=self.worker, lease_s=self.lease_s)

    def claim(self) -> VersionStanding:
        """Take the lease if the version is registered and nobody verifies it. Raises NotFound if it was deleted."""
        with self._db.begin() as connection:
            row = connection.execute(_CLAIM, self._values).mappings().one_or_none()
        if row is None:
            raise NotFound(f"{self.name} was deleted", code="model_not_found")
        golden = golden_answers(row["golden"]) if row["golden"] else ()
        bound = None if row["bound"] is None else QualityBound.model_validate(row["bound"])
        return VersionStanding(VersionState(row["state"]), row["state_reason"], golden, row["is_ours"], bound)

    def renew(self) -> bool:
        """Extend the lease; False if this worker does not hold it any more."""
        with self._db.begin() as connection:
            return connection.execute(_RENEW, self._values).rowcount == 1

    def give_up(self, reason: str) -> None:
        """Leave the version to another worker, and say why this one could not verify it."""
        with self._db.begin() as connection:
            connection.execute(_GIVE_UP, self._values | {"reason": reason})

    def accept(self, report: VerificationReport) -> bool:
        """Make the version ready; False if another worker holds the lease."""
        return self._conclude(VersionState.READY, None, report)

    def reject(self, reason: str, report: VerificationReport) -> bool:
        """Reject the version, so that no worker serves it; False if another worker holds the lease."""
        return self._conclude(VersionState.REJECTED, reason, report)

    def accept_server(self, description: str) -> None:
        """Make a version ready whose inference server runs what was registered; a version that is ready stays so."""
        report = VerificationReport(worker=self.worker, server=description)
        with self._db.begin() as connection:
            values = self._values | {"report": _stored(report)}
            if connection.execute(_SERVED, values).rowcount:
                self._record(connection, VersionState.READY, {"server": description})

    def _conclude(self, state: VersionState, reason: str | None, report: VerificationReport) -> bool:
        values = self._values | {"state": state, "reason": reason, "report": _stored(report)}
        with self._db.begin() as connection:
            if not connection.execute(_CONCLUDE, values).rowcount:
                return False
            self._record(connection, state, {} if reason is None else {"reason": reason})
        return True

    def _record(self, connection: Connection, state: VersionState, detail: Mapping[str, object]) -> None:
        record(connection, None, self.worker, f"model.{state}", self.name, detail)


def _stored(report: VerificationReport) -> str:
    return dump_json(report.model_dump(mode="json", exclude_none=True))
