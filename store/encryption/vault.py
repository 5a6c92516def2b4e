"""Envelope encryption of payload columns and stream frames, before they are stored.

Each value is encrypted with its own data key, and the data key is wrapped by a master key. So a new master key only
wraps the data keys again. Both use AES-256-GCM:

    master key "k2" ──wraps──▶ data key ──seals──▶ value          {"enc": {"k": "k2", "w": "…", "d": "…"}}
                                             ▲
                              associated data: tenant, table, column, row

A sealed value opens only with the encryption context that it was sealed with. The first of several master keys seals;
all of them open. Without keys nothing is sealed. Values in plaintext can always be read.

Fields that SQL must read stay outside of the envelope: the finish reason of an output, the code of an error, and the
search tokens of metadata.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from headrace.store.encryption.key_order import kept, restored
from headrace.store.errors import CannotOpen, InvalidRequest, SettingsError

KEY_BYTES = 32
NONCE_BYTES = 12
ENVELOPE = "enc"

_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TEXT_MARK = "enc:"
_FIELDS = frozenset({"k", "w", "d"})
# U+0000 as orjson writes it, but not an escaped backslash followed by u0000. jsonb refuses U+0000, so we do too.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_JOBS_CACHED = 4096
# Columns with objects of callers that a model may read: of jobs, of tools, of templates and pipelines.
_KEEPING_ORDER = frozenset({"payload", "definition", "template"})
_TOKEN_BYTES = 15

TOKENS = "t"
"""The field for search tokens, beside the envelope of metadata."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {"output": ("finish_reason",), "error": ("code", "retryable", "attempt")}
_JOB_COLUMNS = ("payload", "metadata", "output", "error")


@dataclass(frozen=True, slots=True)
class EncryptionContext:
    """The tenant, table, column and row of a value: the associated data of its encryption."""

    tenant_id: str
    table: str
    column: str
    row_id: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row_id}"

    @property
    def associated_data(self) -> bytes:
        """The context as bytes, different for every value."""
        return orjson.dumps([self.tenant_id, self.table, self.column, self.row_id])

    def with_column(self, column: str) -> "EncryptionContext":
        """Return the context of another column of the same row."""
        return EncryptionContext(self.tenant_id, self.table, column, self.row_id)


class Vault:
    """Encrypts (seals) and decrypts (opens) values with master keys. Thread-safe."""

    def __init__(self, keys: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self._keys = dict(keys)
        self._wrapping = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._stream_key = lru_cache(_JOBS_CACHED)(self._derive_stream_key)

    @property
    def is_on(self) -> bool:
        """True if new values are sealed."""
        return bool(self._keys)

    @property
    def sealing_key(self) -> str:
        """The id of the master key that seals. Raises StopIteration if there is none."""
        return next(iter(self._keys))

    @property
    def key_ids(self) -> Sequence[str]:
        """The ids of all master keys; the first one seals."""
        return tuple(self._keys)

    def seal(self, value: object, context: EncryptionContext, *, outside: Iterable[str] = ()) -> Any:
        """Return a JSON value sealed; if there are no keys the value, which keeps the order of keys (``key_order``).

        The fields of an object that are named in ``outside`` are copied beside the envelope, where SQL can read them.
        """
        if not value:
            return value
        if not self._keys:
            return kept(value) if context.column in _KEEPING_ORDER else value
        seen = {name: value[name] for name in outside if name in value} if isinstance(value, Mapping) else {}
        return {ENVELOPE: self._seal_bytes(_dump(value), context), **seen}

    def open(self, stored: Any, context: EncryptionContext) -> Any:
        """Return the value that was sealed; a value in plaintext is returned unchanged. Raises CannotOpen."""
        envelope = envelope_of(stored)
        if envelope is not None:
            return orjson.loads(self._open_bytes(envelope, context))
        return restored(stored) if context.column in _KEEPING_ORDER else stored

    def seal_text(self, value: str, context: EncryptionContext) -> str:
        """Like ``seal``, for a text column."""
        if not self._keys:
            return value
        return sealed_text(self._seal_bytes(value.encode(), context))

    def open_text(self, stored: str, context: EncryptionContext) -> str:
        """Like ``open``, for a text column."""
        envelope = text_envelope_of(stored)
        return stored if envelope is None else self._open_bytes(envelope, context).decode()

    def checks(self) -> dict[str, str]:
        """Return a check value for each master key, by id. It identifies the key and reveals nothing else about it."""
        return {key_id: self._check(key) for key_id, key in self._keys.items()}

    def digest_keys(self) -> list[bytes]:
        """Return a key for digests derived from each master key, in their order."""
        return [hmac.digest(key, b"headrace digests", hashlib.sha256) for key in self._keys.values()]

    def rewrap(self, envelope: Mapping[str, str], where: str) -> dict[str, str]:
        """Return the envelope with its data key wrapped by the current sealing key. Raises CannotOpen."""
        wrapped = self._wrap(self._unwrap(envelope, where))
        return {"k": self.sealing_key, "w": wrapped, "d": envelope["d"]}

    def tokens(self, tenant_id: str, pairs: Mapping[str, str]) -> dict[str, list[str]]:
        """Return search tokens of these pairs, by master key id.

        Equal pairs of one tenant have equal tokens. A token has 120 bits, so that collisions are negligible.
        """
        return {
            key_id: [self._token(key, tenant_id, *pair) for pair in pairs.items()] for key_id, key in self._keys.items()
        }

    def seal_frame(self, data: bytes, job_id: str, where: bytes) -> bytes:
        """Seal a frame of a stream with a key derived for the job. Returns key id, nonce and ciphertext as bytes.

        Streams are short-lived and never re-encrypted, so a frame needs no data key.
        """
        key_id = self.sealing_key
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._stream_key(key_id, job_id).encrypt(nonce, data, where)
        return b"".join((bytes([len(key_id)]), key_id.encode(), nonce, sealed))

    def open_frame(self, sealed: bytes, job_id: str, where: bytes) -> bytes:
        """Return the frame that was sealed. Raises CannotOpen."""
        key_id, end = frame_key_id(sealed), 1 + sealed[0]
        nonce = sealed[end : end + NONCE_BYTES]
        try:
            self._need(key_id, f"the stream of {job_id}")
            return self._stream_key(key_id, job_id).decrypt(nonce, sealed[end + NONCE_BYTES :], where)
        except InvalidTag:
            raise _changed(f"the stream of {job_id}", key_id) from None

    def seal_key(self) -> tuple[bytes, dict[str, str]]:
        """Return a new data key, for a file, and its envelope."""
        key = AESGCM.generate_key(KEY_BYTES * 8)
        return key, {"k": self.sealing_key, "w": self._wrap(key)}

    def open_key(self, envelope: Mapping[str, str], where: str) -> bytes:
        """Return the data key in an envelope of ``seal_key``. Raises CannotOpen."""
        return self._unwrap(envelope, where)

    def _seal_bytes(self, data: bytes, context: EncryptionContext) -> dict[str, str]:
        key = AESGCM.generate_key(KEY_BYTES * 8)
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, data, context.associated_data)
        return {"k": self.sealing_key, "w": self._wrap(key), "d": base64.b64encode(sealed).decode()}

    def _open_bytes(self, envelope: Mapping[str, str], context: EncryptionContext) -> bytes:
        key = self._unwrap(envelope, str(context))
        try:
            sealed = base64.b64decode(envelope["d"])
            return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context.associated_data)
        except (InvalidTag, ValueError):
            raise _changed(str(context), envelope["k"]) from None

    def _wrap(self, key: bytes) -> str:
        nonce = os.urandom(NONCE_BYTES)
        key_id = self.sealing_key
        return base64.b64encode(nonce + self._wrapping[key_id].encrypt(nonce, key, key_id.encode())).decode()

    def _unwrap(self, envelope: Mapping[str, str], where: str) -> bytes:
        key_id = envelope["k"]
        self._need(key_id, where)
        try:
            wrapped = base64.b64decode(envelope["w"])
            return self._wrapping[key_id].decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], key_id.encode())
        except (InvalidTag, ValueError):
            raise _changed(where, key_id) from None

    def _need(self, key_id: str, where: str) -> None:
        if key_id not in self._keys:
            raise CannotOpen(
                f"{where} is sealed with the encryption key {key_id!r}, which this process was not given: "
                "add it to HEADRACE_ENCRYPTION_KEYS"
            )

    def _derive_stream_key(self, key_id: str, job_id: str) -> AESGCM:
        info = b"headrace stream " + job_id.encode()
        return AESGCM(HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(self._keys[key_id]))

    def _check(self, key: bytes) -> str:
        return base64.b64encode(hmac.digest(key, b"headrace key check", hashlib.sha256)).decode()

    def _token(self, key: bytes, tenant_id: str, name: str, value: str) -> str:
        message = orjson.dumps(["headrace token", tenant_id, name, value])
        return base64.b64encode(hmac.digest(key, message, hashlib.sha256)[:_TOKEN_BYTES]).decode()


def _changed(where: str, key_id: str) -> CannotOpen:
    return CannotOpen(
        f"{where} does not open: it was changed, moved, or sealed with another key of the id {key_id!r}",
        code="encryption_value_invalid",
    )


def seal_job(vault: Vault, tenant_id: str, job_id: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a job's encrypted columns, sealed."""
    context = EncryptionContext(tenant_id, "jobs", "", job_id)
    sealed = {
        name: vault.seal(values[name], context.with_column(name), outside=OUTSIDE.get(name, ()))
        for name in _JOB_COLUMNS
        if name in values
    }
    if "metadata" in sealed:
        sealed["metadata"] = seal_metadata(vault, values["metadata"], context.with_column("metadata"))
    return sealed


def open_job(vault: Vault, row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row of ``jobs`` with its sealed values opened. It must have ``id`` and ``tenant_id``."""
    context = EncryptionContext(row["tenant_id"], "jobs", "", row["id"])
    return {
        name: vault.open(value, context.with_column(name)) if name in _JOB_COLUMNS else value
        for name, value in row.items()
    }


def seal_metadata(vault: Vault, metadata: Mapping[str, str] | None, context: EncryptionContext) -> Any:
    """Return metadata sealed, with the search tokens for ``metadata_filters``."""
    sealed = vault.seal(metadata, context)
    if metadata and envelope_of(sealed) is not None:
        sealed[TOKENS] = vault.tokens(context.tenant_id, metadata)[vault.sealing_key]
    return sealed


def metadata_filters(vault: Vault, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """Return JSON values for ``@>``: metadata with these pairs contains one of them, in plaintext or as tokens."""
    tokens = vault.tokens(tenant_id, wanted).values()
    return [dict(wanted), *({TOKENS: found} for found in tokens)]


def seal_columns(vault: Vault, context: EncryptionContext, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values sealed, each for the column with its name."""
    return {name: vault.seal(value, context.with_column(name)) for name, value in values.items()}


def open_columns(vault: Vault, context: EncryptionContext, row: Mapping[Any, Any], *columns: str) -> dict[str, Any]:
    """Return the row with the values of these columns opened."""
    return {**row, **{name: vault.open(row[name], context.with_column(name)) for name in columns}}


def frame_key_id(sealed: bytes) -> str:
    """Return the id of the key that a frame is sealed with."""
    return sealed[1 : 1 + sealed[0]].decode(errors="replace")


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


def _dump(value: object) -> bytes:
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        # Without the cause: the encoder's message may quote the text.
        raise InvalidRequest("a text is not valid Unicode, or a number is out of range") from None
    refuse_nul(data)
    return data


def refuse_nul(data: bytes) -> None:
    """Raise InvalidRequest for JSON with U+0000. Postgres would refuse it too, and quote it in its log."""
    if has_nul(data):
        raise InvalidRequest("a value cannot be stored: it contains U+0000")


def has_nul(data: bytes) -> bool:
    """True if a string in a JSON text contains U+0000, written as ``\\u0000``."""
    return b"\\u0000" in data and _NUL.search(data) is not None


def parse_keys(text: str, setting: str) -> dict[str, bytes]:
    """Parse ``id:base64`` entries, separated by commas or lines. Raises SettingsError, which quotes no key."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(filter(None, (part.strip() for part in re.split(r"[,\n]", text))), 1):
        key_id, colon, encoded = entry.partition(":")
        if not (colon and _KEY_ID.fullmatch(key_id)):
            raise SettingsError(
                f"{setting}: entry {number} is not ID:KEY, with 1 to 32 letters, digits, - or _ as its id"
            )
        if key_id in keys:
            raise SettingsError(f"{setting}: the id {key_id} is used twice")
        keys[key_id] = _key(encoded, f"{setting}: the key {key_id}")
    return keys


def _key(encoded: str, what: str) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise SettingsError(f"{what} is not base64: make one with `headrace encryption new-key`") from None
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"{what} has {len(key)} bytes, not {KEY_BYTES}: make one with `headrace encryption new-key`"
        )
    return key


def new_key() -> str:
    """Return a new master key in base64, the form of the setting."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()
