"""How contents are stored in columns, streams and files: as they are, unless a feature seals them.

The parts that store contents take a ``Seal``. This one keeps them as they are; that of a feature encrypts them
(``store.db.seal_part``). Each value has a context; a sealed one opens only with the context that it was sealed with.

    column of JSON   {"enc": {"k": key id, "w": …, "d": …}}, beside it the fields that SQL must read
    column of text   enc:key id:w:d
    frame            length of the key id, key id, …
    file             length of the header (2 bytes), {"k": key id, "w": …}, …

Every seal knows these forms, so a process without the key names the key that it needs. Values in plaintext can always
be read; those of ``_AS_TEXT`` are a string with their JSON text (``payload #>> '{}'`` in SQL). SQL reads the finish
reason of an output, the code of an error, and the search tokens of metadata.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import orjson

from headrace.store.errors import CannotOpen
from headrace.store.json_text import dump_json

ENVELOPE: Final = "enc"
OUTSIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "output": ("finish_reason",),
    "error": ("code", "retryable", "attempt"),
}
"""The fields of a job's columns that are stored beside the envelope."""

_TEXT_MARK = "enc:"
_FIELDS = frozenset({"k", "w", "d"})
_LENGTH_BYTES = 2
_JOB_COLUMNS = ("payload", "metadata", "output", "error")
# Columns with objects that a model may read as text. Stored as one string, because ``jsonb`` would sort their keys.
_AS_TEXT = frozenset({"payload", "definition", "template"})


@dataclass(frozen=True, slots=True)
class SealContext:
    """The tenant, table, column and row of a value."""

    tenant_id: str
    table: str
    column: str
    row_id: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row_id}"

    def with_column(self, column: str) -> "SealContext":
        """Return the context of another column of the same row."""
        return SealContext(self.tenant_id, self.table, column, self.row_id)


class FileWriter:
    """Writes the content of a file to ``out``, here as it is; a feature may override it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, data: bytes) -> None:
        """Append data."""
        self._out.write(data)

    def end(self, name: str) -> None:
        """Write what is left. ``name``: that of the content."""


class Seal:
    """Stores values as they are. A feature overrides all of it. Thread-safe.

    ``is_on``: True if new values are sealed; only then ``seal_frame`` is called.
    """

    is_on: bool = False

    def seal(self, value: Any, context: SealContext, *, outside: Iterable[str] = ()) -> Any:
        """Return a JSON value as it is stored. Raises InvalidRequest for a text that cannot be stored.

        The fields of an object that are named in ``outside`` stay where SQL can read them.
        """
        return dump_json(value) if value and context.column in _AS_TEXT else value

    def open(self, stored: Any, context: SealContext) -> Any:
        """Return the value that was stored. Raises CannotOpen if its key is missing, or if it was changed or moved."""
        if (envelope := envelope_of(stored)) is not None:
            raise missing_key(envelope["k"], str(context))
        return orjson.loads(stored) if isinstance(stored, str) and context.column in _AS_TEXT else stored

    def seal_text(self, value: str, context: SealContext) -> str:
        """Like ``seal``, for a text column."""
        return value

    def open_text(self, stored: str, context: SealContext) -> str:
        """Like ``open``, for a text column."""
        if (envelope := text_envelope_of(stored)) is not None:
            raise missing_key(envelope["k"], str(context))
        return stored

    def seal_metadata(self, metadata: Mapping[str, str] | None, context: SealContext) -> Any:
        """Return metadata as they are stored, so that ``metadata_filters`` find them."""
        return self.seal(metadata, context)

    def metadata_filters(self, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        """Return JSON values for ``@>``: metadata with these pairs contain one of them."""
        return [dict(wanted)]

    def seal_frame(self, data: bytes, job_id: str, where: bytes) -> bytes:
        """Return a frame of a job's stream sealed. ``where``: its place in the stream."""
        return data

    def open_frame(self, sealed: bytes, job_id: str, where: bytes) -> bytes:
        """Return the frame that was sealed. Raises CannotOpen."""
        raise missing_key(frame_key_id(sealed), f"the stream of {job_id}")

    def file_writer(self, out: BinaryIO) -> FileWriter:
        """Return what writes the content of a file."""
        return FileWriter(out)

    def open_file(self, content: BinaryIO, name: str) -> BinaryIO:
        """Return a sealed file, open for reading with ``seek``. Raises CannotOpen."""
        where = f"the file content {name}"
        raise missing_key(read_header(content, where)["k"], where)

    def checks(self) -> dict[str, str]:
        """Return a check value for each key, by the key's id: equal only for equal keys."""
        return {}

    def digest_keys(self) -> Sequence[bytes]:
        """Return keys for digests (``store.digests``), if there are keys that they can be derived from."""
        return ()


PLAIN: Final = Seal()


def missing_key(key_id: str, where: str) -> CannotOpen:
    """Return the error for a value whose key this process does not have."""
    return CannotOpen(
        f"{where} is sealed with the encryption key {key_id!r}, which this process was not given: "
        "add it to HEADRACE_ENCRYPTION_KEYS"
    )


def seal_job(seal: Seal, tenant_id: str, job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a job's columns with contents, sealed."""
    context = SealContext(tenant_id, "jobs", "", job_id)
    sealed = {}
    for name in _JOB_COLUMNS:
        if name == "metadata" and name in values:
            sealed[name] = seal.seal_metadata(values[name], context.with_column(name))
        elif name in values:
            sealed[name] = seal.seal(values[name], context.with_column(name), outside=OUTSIDE.get(name, ()))
    return sealed


def open_job(seal: Seal, row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of ``jobs`` with its sealed values opened. It must have ``id`` and ``tenant_id``."""
    context = SealContext(row["tenant_id"], "jobs", "", row["id"])
    return {
        name: seal.open(value, context.with_column(name)) if name in _JOB_COLUMNS else value
        for name, value in row.items()
    }


def seal_columns(seal: Seal, context: SealContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values sealed, each for the column with its name."""
    return {name: seal.seal(value, context.with_column(name)) for name, value in values.items()}


def open_columns(seal: Seal, context: SealContext, row: Mapping[Any, Any], *columns: str) -> dict[str, Any]:
    """Return the row with the values of these columns opened."""
    return {**row, **{name: seal.open(row[name], context.with_column(name)) for name in columns}}


def envelope_of(stored: object) -> dict[str, str] | None:
    """Return the envelope in a stored JSON value; None if it is not sealed.

    No plaintext value can look like an envelope: the values of metadata are texts, and no other value has this field.
    """
    if isinstance(stored, Mapping):
        envelope = stored.get(ENVELOPE)
        if isinstance(envelope, dict) and envelope.keys() == _FIELDS:
            return envelope
    return None


def sealed_text(envelope: Mapping[str, str]) -> str:
    """Return an envelope in the form of a text column."""
    return f"{_TEXT_MARK}{envelope['k']}:{envelope['w']}:{envelope['d']}"


def text_envelope_of(stored: str) -> dict[str, str] | None:
    """Return the envelope in a stored text; None if it is not sealed."""
    parts = stored.split(":")
    return dict(zip("kwd", parts[1:], strict=True)) if stored.startswith(_TEXT_MARK) and len(parts) == 4 else None


def frame_key_id(sealed: bytes) -> str:
    """Return the id of the key that a frame is sealed with."""
    return sealed[1 : 1 + sealed[0]].decode(errors="replace")


def header(envelope: Mapping[str, str]) -> bytes:
    """Return an envelope in the form of a file's header."""
    data = orjson.dumps(envelope)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def read_header(content: BinaryIO, where: str) -> dict[str, str]:
    """Return the envelope at the start of a sealed file. Raises CannotOpen if there is none."""
    length = int.from_bytes(content.read(_LENGTH_BYTES), "big")
    try:
        envelope: dict[str, str] = orjson.loads(content.read(length))
    except orjson.JSONDecodeError:
        raise CannotOpen(f"{where} does not open: it was changed", code="encryption_value_invalid") from None
    return envelope
