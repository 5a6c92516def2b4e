"""Sealing what tenants say before it is stored: the one place that encrypts and decrypts payload columns and frames.

A value gets a data key of its own, and the data key is wrapped by a master key (an envelope), so a new master key
re-wraps data keys and leaves the values alone. AES-256-GCM both times:

    master key "k2" ──wraps──▶ data key ──seals──▶ value          {"enc": {"k": "k2", "w": "…", "d": "…"}}
                                             ▲
                              associated data: tenant, table, column, row

What was sealed for one place opens nowhere else. Of several master keys the first seals and all open; with none
nothing is sealed, and whatever was stored unsealed stays readable in any case. Knows no table and no connection.
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

from store.errors import CannotOpen, InvalidRequest, SettingsError

KEY_BYTES = 32
NONCE_BYTES = 12
ENVELOPE = "enc"

_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TEXT_MARK = "enc:"
_FIELDS = frozenset({"k", "w", "d"})
# U+0000 as orjson writes it, and not the six characters of its spelling. jsonb refuses it; so does a sealed value.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_JOBS_CACHED = 4096
_TOKEN_BYTES = 15


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value is stored; it opens nowhere else."""

    tenant_id: str
    table: str
    column: str
    row_id: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row_id}"

    @property
    def associated_data(self) -> bytes:
        """The place as bytes, no two alike."""
        return orjson.dumps([self.tenant_id, self.table, self.column, self.row_id])

    def column_of(self, column: str) -> "Place":
        """Return the place of another column of the same row."""
        return Place(self.tenant_id, self.table, column, self.row_id)


class Vault:
    """Seals and opens under master keys. Threads may share one."""

    def __init__(self, keys: Mapping[str, bytes] = MappingProxyType({})) -> None:
        self._keys = dict(keys)
        self._wrapping = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._stream_key = lru_cache(_JOBS_CACHED)(self._derive_stream_key)

    @property
    def is_on(self) -> bool:
        """True if what is stored from now on is sealed."""
        return bool(self._keys)

    @property
    def sealing_key(self) -> str:
        """The id of the master key that seals; asking is an error while nothing seals."""
        return next(iter(self._keys))

    @property
    def key_ids(self) -> Sequence[str]:
        """The ids of all master keys, the one that seals first."""
        return tuple(self._keys)

    def seal(self, value: object, place: Place, *, outside: Iterable[str] = ()) -> Any:
        """Return a JSON value sealed for its column; itself if nothing is sealed, or if it is empty.

        Of an object the fields named ``outside`` stay beside the envelope, where SQL can see them.
        """
        if not value or not self._keys:
            return value
        seen = {name: value[name] for name in outside if name in value} if isinstance(value, Mapping) else {}
        return {ENVELOPE: self._seal_bytes(_dump(value), place), **seen}

    def open(self, stored: Any, place: Place) -> Any:
        """Return what ``seal`` was given. Raises CannotOpen; what was never sealed comes back as it is."""
        envelope = envelope_of(stored)
        return stored if envelope is None else orjson.loads(self._open_bytes(envelope, place))

    def seal_text(self, value: str, place: Place) -> str:
        """As ``seal``, for a text column."""
        if not self._keys:
            return value
        return sealed_text(self._seal_bytes(value.encode(), place))

    def open_text(self, stored: str, place: Place) -> str:
        """As ``open``, for a text column."""
        envelope = text_envelope_of(stored)
        return stored if envelope is None else self._open_bytes(envelope, place).decode()

    def checks(self) -> dict[str, str]:
        """Return for each master key what tells it from another of its id, and nothing else about it."""
        return {key_id: self._check(key) for key_id, key in self._keys.items()}

    def digest_keys(self) -> list[bytes]:
        """Return a key for digests, derived from each master key, that of the one that seals first."""
        return [hmac.digest(key, b"headrace digests", hashlib.sha256) for key in self._keys.values()]

    def rewrap(self, envelope: Mapping[str, str], where: str) -> dict[str, str]:
        """Return the envelope with its data key wrapped by the key that seals now. Raises CannotOpen."""
        wrapped = self._wrap(self._unwrap(envelope, where))
        return {"k": self.sealing_key, "w": wrapped, "d": envelope["d"]}

    def tokens(self, tenant_id: str, pairs: Mapping[str, str]) -> dict[str, list[str]]:
        """Return for each master key what stands for these pairs where they are searched for but not shown.

        Equal pairs of one tenant have equal tokens. Of 120 bits, so two different ones do not meet.
        """
        return {
            key_id: [self._token(key, tenant_id, *pair) for pair in pairs.items()] for key_id, key in self._keys.items()
        }

    def seal_frame(self, data: bytes, job_id: str, where: bytes) -> bytes:
        """Seal a piece of a stream under a key of the job's own: key id, nonce and what is sealed, as bytes.

        Streams are short-lived and are not re-wrapped, so there is no data key in each piece.
        """
        key_id = self.sealing_key
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._stream_key(key_id, job_id).encrypt(nonce, data, where)
        return b"".join((bytes([len(key_id)]), key_id.encode(), nonce, sealed))

    def open_frame(self, sealed: bytes, job_id: str, where: bytes) -> bytes:
        """Return what ``seal_frame`` was given. Raises CannotOpen."""
        key_id, end = frame_key_id(sealed), 1 + sealed[0]
        nonce = sealed[end : end + NONCE_BYTES]
        try:
            self._need(key_id, f"the stream of {job_id}")
            return self._stream_key(key_id, job_id).decrypt(nonce, sealed[end + NONCE_BYTES :], where)
        except InvalidTag:
            raise _changed(f"the stream of {job_id}", key_id) from None

    def seal_key(self) -> tuple[bytes, dict[str, str]]:
        """Return a new data key, for what is sealed elsewhere (a file), and the envelope that it is wrapped in."""
        key = AESGCM.generate_key(KEY_BYTES * 8)
        return key, {"k": self.sealing_key, "w": self._wrap(key)}

    def open_key(self, envelope: Mapping[str, str], where: str) -> bytes:
        """Return the data key of ``seal_key``. Raises CannotOpen."""
        return self._unwrap(envelope, where)

    def _seal_bytes(self, data: bytes, place: Place) -> dict[str, str]:
        key = AESGCM.generate_key(KEY_BYTES * 8)
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, data, place.associated_data)
        return {"k": self.sealing_key, "w": self._wrap(key), "d": base64.b64encode(sealed).decode()}

    def _open_bytes(self, envelope: Mapping[str, str], place: Place) -> bytes:
        key = self._unwrap(envelope, str(place))
        try:
            sealed = base64.b64decode(envelope["d"])
            return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.associated_data)
        except (InvalidTag, ValueError):
            raise _changed(str(place), envelope["k"]) from None

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
        said = orjson.dumps(["headrace token", tenant_id, name, value])
        return base64.b64encode(hmac.digest(key, said, hashlib.sha256)[:_TOKEN_BYTES]).decode()


def _changed(where: str, key_id: str) -> CannotOpen:
    return CannotOpen(
        f"{where} does not open: it was changed, moved, or sealed with another key of the id {key_id!r}",
        code="encryption_value_invalid",
    )


def frame_key_id(sealed: bytes) -> str:
    """Return the id of the key that a piece of a stream is sealed with."""
    return sealed[1 : 1 + sealed[0]].decode(errors="replace")


def envelope_of(stored: object) -> dict[str, str] | None:
    """Return the envelope in a stored JSON value; None if it is not sealed.

    No value of ours looks like one: metadata has only texts as values, and nothing else has a field of this name.
    """
    if isinstance(stored, Mapping):
        envelope = stored.get(ENVELOPE)
        if isinstance(envelope, dict) and envelope.keys() == _FIELDS:
            return envelope
    return None


def sealed_text(envelope: Mapping[str, str]) -> str:
    """Return an envelope as a text column has it."""
    return f"{_TEXT_MARK}{envelope['k']}:{envelope['w']}:{envelope['d']}"


def text_envelope_of(stored: str) -> dict[str, str] | None:
    """Return the envelope in a stored text; None if it is not sealed."""
    parts = stored.split(":")
    return dict(zip("kwd", parts[1:], strict=True)) if stored.startswith(_TEXT_MARK) and len(parts) == 4 else None


def _dump(value: object) -> bytes:
    try:
        data = orjson.dumps(value)
    except orjson.JSONEncodeError:
        # From None: the encoder's message may quote the text.
        raise InvalidRequest("a text is not valid Unicode, or a number is out of range") from None
    refuse_nul(data)
    return data


def refuse_nul(data: bytes) -> None:
    """Raise InvalidRequest for JSON with U+0000. Postgres would refuse it too, and quote it in its log."""
    if has_nul(data):
        raise InvalidRequest("a value cannot be stored: it contains U+0000")


def has_nul(data: bytes) -> bool:
    """True if a JSON text has U+0000 in one of its strings, which it spells ``\\u0000``."""
    return b"\\u0000" in data and _NUL.search(data) is not None


def parse_keys(text: str, setting: str) -> dict[str, bytes]:
    """Read ``id:base64`` entries, divided by commas or lines. Raises SettingsError, which quotes no key."""
    keys: dict[str, bytes] = {}
    for number, entry in enumerate(filter(None, (part.strip() for part in re.split(r"[,\n]", text))), 1):
        key_id, colon, encoded = entry.partition(":")
        if not (colon and _KEY_ID.fullmatch(key_id)):
            raise SettingsError(
                f"{setting}: entry {number} is not ID:KEY, with 1 to 32 letters, digits, - or _ as its id"
            )
        if key_id in keys:
            raise SettingsError(f"{setting}: the id {key_id} is there twice")
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
    """Return a new master key, as the settings want it."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()
