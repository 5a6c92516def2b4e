"""The passages of files: written by the worker in the transaction that ends the job, read by searches."""

import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from headrace.store.db.database import Database
from headrace.store.json_text import dump_json
from headrace.store.seal import Seal, SealContext

FULL_TEXT = "english"
"""Postgres's configuration for words: they are compared by their stems, and frequent ones are left out."""


_ROWS_AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file's text. ``start`` and ``end`` count characters; ``page`` counts from 1, if there are pages."""

    text: str
    start: int
    end: int
    page: int | None = None


@dataclass(frozen=True, slots=True)
class FilePassages:
    """All passages of a file, and a vector for each: float32, little-endian. ``ticket``: of the attachment."""

    ticket: str
    tenant_id: str
    passages: tuple[Passage, ...]
    vectors: tuple[bytes, ...]

    def write(self, connection: Connection, seal: Seal) -> None:
        """Store the passages, unless their attachment is gone or complete."""
        values = {"tenant_id": self.tenant_id, "ticket": self.ticket, "num_passages": len(self.passages)}
        num_bytes = sum(len(passage.text.encode()) for passage in self.passages) + sum(map(len, self.vectors))
        row = connection.execute(_COMPLETE, values | {"num_bytes": num_bytes}).one_or_none()
        if row is None:
            return
        # In pieces, because Postgres ends a transaction that is idle while its rows are made on a busy machine.
        numbers = range(len(self.passages))
        for first in range(0, len(numbers), _ROWS_AT_A_TIME):
            piece = numbers[first : first + _ROWS_AT_A_TIME]
            connection.execute(_ADD, [_row(self, number, row.store_id, row.file_id, seal) for number in piece])


# Marks an attachment as complete, once. One that was taken away or replaced has no such ticket.
_COMPLETE = text("""
UPDATE vector_store_files SET completed_at = now(), num_passages = :num_passages, num_bytes = :num_bytes
WHERE tenant_id = :tenant_id AND ticket = :ticket AND completed_at IS NULL
RETURNING store_id, file_id
""")

_ADD = text(f"""
INSERT INTO vector_store_passages (store_id, file_id, position, tenant_id, content, terms, embedding)
SELECT :store_id, :file_id, :position, :tenant_id, CAST(:content AS jsonb),
    CASE WHEN :is_sealed THEN strip(found.terms) ELSE found.terms END, CAST(:embedding AS real[])
FROM (SELECT to_tsvector('{FULL_TEXT}', :words) AS terms) AS found
""")

# A page of a file's passages.
_READ = text("""
SELECT store_id, file_id, position, tenant_id, content FROM vector_store_passages
WHERE tenant_id = :tenant_id AND store_id = :store_id AND file_id = :file_id AND position > :after
ORDER BY position LIMIT :limit
""")


def _row(found: FilePassages, position: int, store_id: str, file_id: str, seal: Seal) -> dict[str, Any]:
    passage = found.passages[position]
    content = {name: value for name, value in asdict(passage).items() if value is not None}
    sealed = seal.seal(content, _context(found.tenant_id, store_id, file_id, position))
    return {
        "store_id": store_id,
        "file_id": file_id,
        "position": position,
        "tenant_id": found.tenant_id,
        "content": dump_json(sealed),
        "is_sealed": seal.is_on,
        "words": passage.text,
        "embedding": array_of(unit_vector(found.vectors[position])),
    }


def unit_vector(vector: bytes) -> tuple[float, ...]:
    """Return the numbers of a vector, divided by its length. Zeros stay zeros."""
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    length = sqrt(sum(number * number for number in numbers))
    return tuple(number / length for number in numbers) if length else numbers


def array_of(numbers: Sequence[float]) -> str:
    """Return Postgres's text of an array, with all digits of a float32."""
    return f"{{{','.join(f'{number:.9g}' for number in numbers)}}}"


def opened(row: RowMapping, seal: Seal) -> Passage:
    """Return the passage of a row. Raises CannotOpen."""
    where = _context(row["tenant_id"], row["store_id"], row["file_id"], row["position"])
    return Passage(**seal.open(row["content"], where))


def read(
    db: Database, tenant_id: str, store_id: str, file_id: str, *, after: int = -1, limit: int
) -> list[tuple[int, Passage]]:
    """Return the passages of a file behind the position ``after``, at most ``limit``, with their positions."""
    values = {"tenant_id": tenant_id, "store_id": store_id, "file_id": file_id, "after": after, "limit": limit}
    with db.autocommit(tenant_id=tenant_id) as connection:
        rows = connection.execute(_READ, values).mappings().all()
    return [(row["position"], opened(row, db.seal)) for row in rows]


def _context(tenant_id: str, store_id: str, file_id: str, position: int) -> SealContext:
    return SealContext(tenant_id, "vector_store_passages", "content", f"{store_id}/{file_id}/{position}")
