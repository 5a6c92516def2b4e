"""Runs again what a batch has no answer to: an input file of those lines, as they were, for a new batch."""

from itertools import islice

from sqlalchemy import text

from headrace.features.batches.batch_input import RawLine, read_lines
from headrace.features.batches.batches import Batch
from headrace.features.files.blob_storage import Blobs, BlobWriter
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.settings import Settings

_LINES_PER_PIECE = 4096

# The stored lines of a range, and whether they have an answer.
_OUTCOMES = text("""
SELECT line, outcome IS NOT DISTINCT FROM 'succeeded' AS is_answered FROM batch_lines
WHERE batch_id = :id AND line BETWEEN :first AND :last
""")


def write_missing(db: Database, blobs: Blobs, settings: Settings, batch: Batch) -> BlobWriter:
    """Return a draft with the lines of an ended batch that have no answer, in their order; the caller drops it.

    Raises Conflict if the batch has not ended, InvalidRequest if nothing can run again, NotFound if the outcomes were
    deleted, Unavailable.
    """
    if not batch.status.is_terminal:
        raise Conflict(f"the batch is {batch.status}: cancel it, or wait until it has ended")
    if batch.status is BatchStatus.FAILED:
        raise InvalidRequest("the input of the batch is invalid: correct it, and create a new batch")
    if batch.input_digest is None or batch.purged_at is not None:
        raise _deleted(batch)
    draft = blobs.create()
    try:
        with blobs.open(batch.input_digest) as content:
            lines = read_lines(content, settings.max_body_bytes)
            while piece := list(islice(lines, _LINES_PER_PIECE)):
                draft.write(b"".join(_missing(db, batch, piece)))
        if not draft.num_bytes:
            raise InvalidRequest("every line of the batch has an answer")
    except BaseException:
        draft.drop()
        raise
    return draft


def _missing(db: Database, batch: Batch, piece: list[RawLine]) -> list[bytes]:
    with db.autocommit(tenant_id=batch.tenant_id) as connection:
        values = {"id": batch.id, "first": piece[0].number, "last": piece[-1].number}
        is_answered = {row.line: row.is_answered for row in connection.execute(_OUTCOMES, values)}
    if any(line.number < batch.next_line and line.number not in is_answered for line in piece):
        raise _deleted(batch)
    left = (line.text for line in piece if line.text is not None and not is_answered.get(line.number))
    return [one if one.endswith(b"\n") else one + b"\n" for one in left]


def _deleted(batch: Batch) -> NotFound:
    return NotFound(f"what became of the lines of {batch.id[:80]} was deleted: create a new batch of its input file")
