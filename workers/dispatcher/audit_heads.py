"""Telling the heads of the audit log, so that they are known outside of the database too: in the dispatcher's log."""

import structlog

from store.audit import export
from store.audit.chain_heads import EVENT, head_fields
from store.db.database import Database

log = structlog.get_logger(__name__)


class AuditHeads:
    """A duty: one line for each chain that has grown since it was last told of."""

    def __init__(self, db: Database, key: str) -> None:
        self._db = db
        self._key = key
        self._told: dict[str, str] = {}

    def tell(self) -> None:
        """Log the heads that have moved; ``headrace audit verify --head LOG`` reads them."""
        for head in export.heads(self._db):
            if self._told.get(head.chain) != head.hash:
                log.info(EVENT, **head_fields(head, self._key))
                self._told[head.chain] = head.hash
