"""Which master keys what is stored was sealed under, and sealing it under the one that seals now.

Rows are looked at in the order of their keys, a page in each transaction: what was done stays done whoever dies, and
the next run passes over it. Of a sealed value only its data key is wrapped anew; metadata is sealed anew with the
tokens that it is searched by, and so is what was stored before there were keys. Contents of files are written anew.

    column ▸ {"enc": {"k": old, "w": …, "d": …}} ──rewrap──▶ {"enc": {"k": new, "w": …, "d": the same}}
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, text

from store.db.database import Database, dump_json
from store.encryption.encrypted_columns import OUTSIDE, seal_metadata
from store.encryption.vault import ENVELOPE, Place, Vault, envelope_of, sealed_text, text_envelope_of
from store.errors import CannotOpen
from store.files.blob_storage import Blobs, read_blocks

PLAIN: Final = ""
"""In the place of a key's id: not sealed."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table with sealed columns, and how to find whose a row is. ``key`` names the row, in this order.

    ``never_plain``: what is not sealed in these was not said by a tenant. ``sealed_for`` and ``sealed_as``: the table
    and the column that a value was sealed for, where it is a copy. ``is_text``: the columns are texts, not JSON.
    """

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    tenant: str = "tenant_id"
    never_plain: tuple[str, ...] = ()
    sealed_for: str = ""
    sealed_as: str = ""
    is_text: bool = False

    def place_of(self, row: RowMapping, column: str) -> Place:
        """Return where a value of the row is sealed for."""
        names = self.key[:1] if self.sealed_for else self.key
        row_id = "/".join(str(row[name]) for name in names)
        return Place(row["tenant_id_of"], self.sealed_for or self.table, self.sealed_as or column, row_id)

    def key_id_of(self, column: str) -> str:
        """Return the SQL for the id of the key that sealed a column: null if there is nothing to seal in it."""
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
    Target("attempts", ("job_id", "epoch"), ("error",), _of("jobs", "job_id"), ("error",), "jobs"),
    Target("job_streams", ("job_id",), ("deltas", "logprobs"), _of("jobs", "job_id")),
    Target("job_checkpoints", ("job_id",), ("deltas", "token_ids", "logprobs"), _of("jobs", "job_id")),
    Target("responses", ("job_id",), ("input", "request")),
    Target("batches", ("id",), ("metadata", "errors")),
    Target("batch_lines", ("batch_id", "line"), ("refusal",), _of("batches", "batch_id")),
    Target("prompt_versions", ("prompt_id", "version"), ("template",), _of("prompts", "prompt_id")),
    Target("tenants", ("id",), ("webhook_secret",), "id", (), "webhook_secrets", "secret", is_text=True),
    Target("webhook_secrets", ("tenant_id",), ("secret", "old_secret"), sealed_as="secret", is_text=True),
    Target("webhook_endpoints", ("id",), ("secret", "old_secret"), sealed_as="secret", is_text=True),
)


@dataclass(frozen=True, slots=True)
class Page:
    """What was found in a page: how many values each key sealed, how many were sealed anew, and why others were not."""

    num_rows: int
    found: Counter[str]
    num_resealed: int = 0
    errors: tuple[str, ...] = ()


def pages(db: Database, target: Target, *, limit: int, reseal: bool = False) -> Iterator[Page]:
    """Go through a table, page by page; seal what another key sealed, or none, if that is asked for."""
    after: tuple[Any, ...] | None = None
    more = True
    while more:
        with db.begin() as connection:
            values = {"limit": limit, **target.bound(after or ())}
            rows = connection.execute(text(_look(target, first=after is None)), values).mappings().all()
            found = Counter(row[column] for row in rows for column in target.columns if row[column] is not None)
            due = [row for row in rows if any(_is_due(db.vault, row[column]) for column in target.columns)]
            done, errors = _reseal(connection, db.vault, target, due) if reseal else (0, [])
        yield Page(len(rows), found, done, tuple(errors))
        more = len(rows) == limit
        after = tuple(rows[-1][name] for name in target.key) if rows else None


def _is_due(vault: Vault, key_id: str | None) -> bool:
    return key_id is not None and vault.is_on and key_id != vault.sealing_key


def _look(target: Target, *, first: bool) -> str:
    """A page of keys, and for each column the id of the key that sealed it; null: there is nothing to seal."""
    key = ", ".join(target.key)
    past = "" if first else f"WHERE ({key}) > ({', '.join(f':key_{n}' for n in range(len(target.key)))})"
    columns = ", ".join(map(target.key_id_of, target.columns))
    return f"SELECT {key}, {columns} FROM {target.table} {past} ORDER BY {key} LIMIT :limit"


def _reseal(connection: Connection, vault: Vault, target: Target, due: Sequence[RowMapping]) -> tuple[int, list[str]]:
    """Seal the values of these rows anew; return how many, and what did not open. Each row is held while it is done."""
    where = " AND ".join(f"{name} = :key_{n}" for n, name in enumerate(target.key))
    whose = f"{target.tenant} AS tenant_id_of"
    read = text(f"SELECT *, {whose} FROM {target.table} WHERE {where} FOR NO KEY UPDATE OF {target.table}")
    done, errors = 0, []
    for seen in due:
        key = target.bound(tuple(seen[name] for name in target.key))
        row = connection.execute(read, key).mappings().one_or_none()
        if row is None:  # it went meanwhile
            continue
        changes: dict[str, Any] = {}
        for column in target.columns:
            try:
                changes |= _sealed_anew(vault, target, row, column)
            except CannotOpen as error:
                errors.append(error.message)
        if changes:
            kind = "text" if target.is_text else "jsonb"
            sets = ", ".join(f"{column} = CAST(:{column} AS {kind})" for column in changes)
            values = changes if target.is_text else {column: dump_json(value) for column, value in changes.items()}
            connection.execute(text(f"UPDATE {target.table} SET {sets} WHERE {where}"), key | values)
            done += len(changes)
    return done, errors


def _sealed_anew(vault: Vault, target: Target, row: RowMapping, column: str) -> dict[str, Any]:
    """Return the column's new value, nothing if it is sealed as it should be."""
    stored, place = row[column], target.place_of(row, column)
    envelope = text_envelope_of(stored or "") if target.is_text else envelope_of(stored)
    if not stored or (envelope is None and column in target.never_plain):
        return {}
    if envelope is not None and envelope["k"] == vault.sealing_key:
        return {}
    if target.is_text:
        return {column: _text_sealed_anew(vault, stored, envelope, place)}
    if (target.table, column) == ("jobs", "metadata"):
        return {column: seal_metadata(vault, vault.open(stored, place), place)}
    if envelope is None:
        return {column: vault.seal(stored, place, outside=OUTSIDE.get(column, ()) if target.table == "jobs" else ())}
    return {column: {**stored, ENVELOPE: vault.rewrap(envelope, str(place))}}


def _text_sealed_anew(vault: Vault, stored: str, envelope: dict[str, str] | None, place: Place) -> str:
    return vault.seal_text(stored, place) if envelope is None else sealed_text(vault.rewrap(envelope, str(place)))


def digests(db: Database) -> list[str]:
    """Return the name of every content of the storage."""
    with db.autocommit() as connection:
        found = connection.execute(text("SELECT digest FROM blobs WHERE removed_at IS NULL ORDER BY digest"))
        return list(found.scalars())


def reseal_file(db: Database, blobs: Blobs, digest: str) -> None:
    """Seal a content anew, in the place of the old. Raises CannotOpen, Unavailable."""
    with db.autocommit() as connection:  # so that it is not removed meanwhile
        connection.execute(text("UPDATE blobs SET touched_at = now() WHERE digest = :digest"), {"digest": digest})
    draft = blobs.create()
    try:
        for block in read_blocks(blobs, digest):
            draft.write(block)
        draft.keep(digest)
    finally:
        draft.drop()
