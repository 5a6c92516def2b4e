"""Logs the heads of the audit chains, so that a copy exists outside of the database."""

import structlog

from headrace.features.audit import export
from headrace.features.audit.chain_heads import EVENT, head_fields
from headrace.store.db.database import Database

log = structlog.get_logger(__name__)


class AuditHeads:
    """A duty: logs one line for each chain that has grown since its last line."""

    def __init__(self, db: Database, key: str) -> None:
        self._db = db
        self._key = key
        self._logged: dict[str, str] = {}

    def log_heads(self) -> None:
        """Log the heads that have moved; ``headrace audit verify --head LOG`` reads them."""
        for head in export.heads(self._db):
            if self._logged.get(head.chain) != head.hash:
                log.info(EVENT, **head_fields(head, self._key))
                self._logged[head.chain] = head.hash
