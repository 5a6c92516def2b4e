"""Re-encryption of stored values under the current master key, and counts of values by master key.

Rows are read in the order of their keys, one page in each transaction. Finished pages stay finished if the process
dies, and the next run skips them. An encrypted value keeps its ciphertext: only its data key is wrapped again. Values
in plaintext, and metadata with its search tokens, are encrypted again. Contents of files are written again.

    column ▸ {"enc": {"k": old, "w": …, "d": …}} ──rewrap──▶ {"enc": {"k": new, "w": …, "d": the same}}
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
from sqlalchemy import Connection, RowMapping, text

from headrace.features.encryption.vault import Vault
from headrace.features.files.blob_storage import Blobs, as_unavailable, read_blocks
from headrace.store.db.database import Database
from headrace.store.errors import CannotOpen
from headrace.store.json_text import dump_json
from headrace.store.redis.connection import translated_errors
from headrace.store.seal import (
    ENVELOPE,
    OUTSIDE,
    SealContext,
    envelope_of,
    frame_key_id,
    read_header,
    sealed_text,
    text_envelope_of,
)
from headrace.store.streams.stream_log import stream_key

PLAIN: Final = ""
"""Instead of a key id: the value is in plaintext."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table with encrypted columns. ``key``: its primary key. ``tenant``: SQL for the tenant id of a row.

    ``never_plain``: columns in which plaintext values are not from a tenant and stay as they are. ``sealed_for`` and
    ``sealed_as``: the table and column in the encryption context of a copied value. ``is_text``: text, not JSON.
    """

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    tenant: str = "tenant_id"
    never_plain: tuple[str, ...] = ()
    sealed_for: str = ""
    sealed_as: str = ""
    is_text: bool = False

    def context_of(self, row: RowMapping, column: str) -> SealContext:
        """Return the encryption context of a value of the row."""
        names = self.key[:1] if self.sealed_for else self.key
        row_id = "/".join(str(row[name]) for name in names)
        return SealContext(row["tenant_id_of"], self.sealed_for or self.table, self.sealed_as or column, row_id)

    def key_id_of(self, column: str) -> str:
        """Return the SQL for the key id of a column: NULL if it has no value to encrypt, '' for plaintext."""
        if self.is_text:
            return f"""CASE
                WHEN {column} LIKE 'enc:%' THEN split_part({column}, ':', 2)
                WHEN {column} <> '' THEN '' END AS {column}"""
        plain = "NULL" if column in self.never_plain else "''"
        return f"""CASE
            WHEN {column} IS NULL OR {column} IN ('{{}}', '[]', 'null') THEN NULL
            ELSE COALESCE({column} #>> '{{enc,k}}', {plain}) END AS {column}"""

    def bound(self, key: Sequence[Any]) -> dict[str, Any]:
        """Return a row's key as parameters."""
        return {f"key_{number}": value for number, value in enumerate(key)}


def _of(table: str, key: str) -> str:
    return f"(SELECT tenant_id FROM {table} AS owner WHERE owner.id = {key})"


TARGETS: Final = (
    Target("jobs", ("id",), ("payload", "metadata", "output", "error"), never_plain=("error",)),
    Target("job_fallbacks", ("job_id",), ("payload",), sealed_for="jobs"),
    Target("attempts", ("job_id", "epoch"), ("error",), _of("jobs", "job_id"), ("error",), "jobs"),
    Target("job_streams", ("job_id",), ("deltas", "logprobs"), _of("jobs", "job_id")),
    Target("job_checkpoints", ("job_id",), ("deltas", "token_ids", "logprobs"), _of("jobs", "job_id")),
    Target("responses", ("job_id",), ("input", "request")),
    Target("celery_tasks", ("job_id",), ("message",)),
    Target("conversations", ("id",), ("metadata",)),
    Target("conversation_items", ("conversation_id", "id"), ("item",)),
    Target("batches", ("id",), ("metadata", "errors")),
    Target("batch_lines", ("batch_id", "line"), ("refusal",), _of("batches", "batch_id")),
    Target("prompt_versions", ("prompt_id", "version"), ("template",), _of("prompts", "prompt_id")),
    Target("vector_store_passages", ("store_id", "file_id", "position"), ("content",)),
    Target("tools", ("id",), ("definition",)),
    Target("schedules", ("id",), ("definition",)),
    Target("tool_approvals", ("id",), ("reason",)),
    Target("tenants", ("id",), ("webhook_secret",), "id", (), "webhook_secrets", "secret", is_text=True),
    Target("webhook_secrets", ("tenant_id",), ("secret", "old_secret"), sealed_as="secret", is_text=True),
    Target("webhook_endpoints", ("id",), ("secret", "old_secret"), sealed_as="secret", is_text=True),
)


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """One page of a table: the number of values by key id, the number of re-encrypted ones, and errors of others."""

    num_rows: int
    found: Counter[str]
    num_resealed: int = 0
    errors: tuple[str, ...] = ()


def pages(db: Database, target: Target, *, limit: int, vault: Vault | None = None) -> Iterator[KeyUsage]:
    """Read a table page by page. With ``vault``, re-encrypt values of older keys and values in plaintext with it."""
    after: tuple[Any, ...] | None = None
    more = True
    while more:
        with db.begin() as connection:
            values = {"limit": limit, **target.bound(after or ())}
            rows = connection.execute(text(_page_sql(target, first=after is None)), values).mappings().all()
            found = Counter(row[column] for row in rows for column in target.columns if row[column] is not None)
            done, errors = (0, []) if vault is None else _reseal(connection, vault, target, rows)
        yield KeyUsage(len(rows), found, done, tuple(errors))
        more = len(rows) == limit
        after = tuple(rows[-1][name] for name in target.key) if rows else None


def _page_sql(target: Target, *, first: bool) -> str:
    """The SQL for a page of primary keys, and the key id of each column."""
    key = ", ".join(target.key)
    past = "" if first else f"WHERE ({key}) > ({', '.join(f':key_{n}' for n in range(len(target.key)))})"
    columns = ", ".join(map(target.key_id_of, target.columns))
    return f"SELECT {key}, {columns} FROM {target.table} {past} ORDER BY {key} LIMIT :limit"


def _reseal(connection: Connection, vault: Vault, target: Target, rows: Sequence[RowMapping]) -> tuple[int, list[str]]:
    """Re-encrypt values of other keys, each row locked. Returns the number of values, and the errors of others."""
    where = " AND ".join(f"{name} = :key_{n}" for n, name in enumerate(target.key))
    read = text(
        f"SELECT *, {target.tenant} AS tenant_id_of FROM {target.table} WHERE {where}"
        f" FOR NO KEY UPDATE OF {target.table}"
    )
    done, errors = 0, []
    for seen in rows:
        if {seen[column] for column in target.columns} <= {None, vault.sealing_key}:
            continue
        key = target.bound(tuple(seen[name] for name in target.key))
        row = connection.execute(read, key).mappings().one_or_none()
        if row is None:  # the row was deleted meanwhile
            continue
        changes: dict[str, Any] = {}
        for column in target.columns:
            try:
                changes |= _resealed(vault, target, row, column)
            except CannotOpen as error:
                errors.append(error.message)
        if changes:
            kind = "text" if target.is_text else "jsonb"
            sets = ", ".join(f"{column} = CAST(:{column} AS {kind})" for column in changes)
            values = changes if target.is_text else {column: dump_json(value) for column, value in changes.items()}
            connection.execute(text(f"UPDATE {target.table} SET {sets} WHERE {where}"), key | values)
            done += len(changes)
    return done, errors


def _resealed(vault: Vault, target: Target, row: RowMapping, column: str) -> dict[str, Any]:
    """Return the column's new value; {} if the current key already encrypts it."""
    stored, context = row[column], target.context_of(row, column)
    envelope = text_envelope_of(stored or "") if target.is_text else envelope_of(stored)
    if not stored or (envelope is None and column in target.never_plain):
        return {}
    if envelope is not None and envelope["k"] == vault.sealing_key:
        return {}
    if target.is_text:
        return {column: _resealed_text(vault, stored, envelope, context)}
    if (target.table, column) == ("jobs", "metadata"):
        return {column: vault.seal_metadata(vault.open(stored, context), context)}
    if envelope is None:
        outside = OUTSIDE.get(column, ()) if target.table == "jobs" else ()
        return {column: vault.seal(vault.open(stored, context), context, outside=outside)}
    return {column: {**stored, ENVELOPE: vault.rewrap(envelope, str(context))}}


def _resealed_text(vault: Vault, stored: str, envelope: dict[str, str] | None, context: SealContext) -> str:
    return vault.seal_text(stored, context) if envelope is None else sealed_text(vault.rewrap(envelope, str(context)))


def digests(db: Database) -> list[str]:
    """Return the digest of every content in the storage."""
    with db.autocommit() as connection:
        found = connection.execute(text("SELECT digest FROM blobs WHERE removed_at IS NULL ORDER BY digest"))
        return list(found.scalars())


def file_key_id(blobs: Blobs, digest: str) -> str:
    """Return the id of the master key of a content; ``PLAIN`` if it is in plaintext. Raises CannotOpen, Unavailable."""
    content, is_sealed = blobs.open_stored(digest)
    with as_unavailable(), content:
        return read_header(content, f"the file content {digest}")["k"] if is_sealed else PLAIN


def reseal_file(db: Database, blobs: Blobs, digest: str) -> None:
    """Write a content again, encrypted with the current key. Raises CannotOpen, Unavailable."""
    with db.autocommit() as connection:  # a recently touched content is not removed
        connection.execute(text("UPDATE blobs SET touched_at = now() WHERE digest = :digest"), {"digest": digest})
    draft = blobs.create()
    try:
        for block in read_blocks(blobs, digest):
            draft.write(block)
        draft.keep(digest)
    finally:
        draft.drop()


def stream_key_ids(client: redis.Redis) -> Counter[str]:
    """Return the ids of the keys that encrypted the logs' oldest frames, with the number of logs of each."""
    found: Counter[str] = Counter()
    with translated_errors(client):
        for key in client.scan_iter(match=stream_key("*"), count=1000):
            entries: Any = client.xrange(key, count=2)
            texts = [fields[b"t"] for _, fields in entries if fields.get(b"k", b"").isupper() and fields.get(b"t")]
            if texts:
                found[frame_key_id(texts[0])] += 1
    return found
