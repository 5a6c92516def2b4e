"""Envelope encryption of payload columns, stream frames and files, before they are stored.

Each value is encrypted with its own data key, and the data key is wrapped by a master key. So a new master key only
wraps the data keys again. Both use AES-256-GCM:

    master key "k2" ──wraps──▶ data key ──seals──▶ value          {"enc": {"k": "k2", "w": "…", "d": "…"}}
                                             ▲
                              associated data: tenant, table, column, row

A sealed value opens only with the context that it was sealed with. The first of several master keys seals; all of them
open.
"""

import base64
import hashlib
import hmac
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from headrace.features.encryption.encrypted_files import CHUNK_BYTES, NONCE_BYTES, SealedReader, SealedWriter
from headrace.features.encryption.master_keys import KEY_BYTES
from headrace.store.errors import CannotOpen
from headrace.store.json_text import dump_json
from headrace.store.seal import (
    ENVELOPE,
    FileWriter,
    Seal,
    SealContext,
    envelope_of,
    frame_key_id,
    header,
    missing_key,
    read_header,
    sealed_text,
    text_envelope_of,
)

# The field for search tokens, beside the envelope of metadata.
_TOKENS = "t"
_JOBS_CACHED = 4096
_TOKEN_BYTES = 15


class Vault(Seal):
    """Encrypts (seals) and decrypts (opens) values with master keys, of which it needs at least one. Thread-safe."""

    is_on = True

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self._wrapping = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self._stream_key = lru_cache(_JOBS_CACHED)(self._derive_stream_key)

    @property
    def sealing_key(self) -> str:
        """The id of the master key that seals."""
        return next(iter(self._keys))

    @property
    def key_ids(self) -> Sequence[str]:
        """The ids of all master keys; the first one seals."""
        return tuple(self._keys)

    def seal(self, value: Any, context: SealContext, *, outside: Iterable[str] = ()) -> Any:
        """Return a JSON value sealed, unless it is empty. See ``Seal``."""
        if not value:
            return value
        seen = {name: value[name] for name in outside if name in value} if isinstance(value, Mapping) else {}
        return {ENVELOPE: self._seal_bytes(dump_json(value).encode(), context), **seen}

    def open(self, stored: Any, context: SealContext) -> Any:
        """See ``Seal``."""
        envelope = envelope_of(stored)
        return super().open(stored, context) if envelope is None else orjson.loads(self._open_bytes(envelope, context))

    def seal_text(self, value: str, context: SealContext) -> str:
        """See ``Seal``."""
        return sealed_text(self._seal_bytes(value.encode(), context))

    def open_text(self, stored: str, context: SealContext) -> str:
        """See ``Seal``."""
        envelope = text_envelope_of(stored)
        return stored if envelope is None else self._open_bytes(envelope, context).decode()

    def seal_metadata(self, metadata: Mapping[str, str] | None, context: SealContext) -> Any:
        """Return metadata sealed, with search tokens beside the envelope."""
        sealed = self.seal(metadata, context)
        if metadata:
            sealed[_TOKENS] = self.tokens(context.tenant_id, metadata)[self.sealing_key]
        return sealed

    def metadata_filters(self, tenant_id: str, wanted: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        """Return the pairs in plaintext, and as the tokens of each key. See ``Seal``."""
        tokens = self.tokens(tenant_id, wanted).values()
        return [dict(wanted), *({_TOKENS: found} for found in tokens)]

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

    def file_writer(self, out: BinaryIO) -> FileWriter:
        """Return what encrypts the content of a file with a data key of its own."""
        key = AESGCM.generate_key(KEY_BYTES * 8)
        out.write(header({"k": self.sealing_key, "w": self._wrap(key)}))
        return SealedWriter(out, key)

    def open_file(self, content: BinaryIO, name: str) -> BinaryIO:
        """See ``Seal``."""
        where = f"the file content {name}"
        key = self._unwrap(read_header(content, where), where)
        return io.BufferedReader(SealedReader(content, key, name, where), CHUNK_BYTES)

    def _seal_bytes(self, data: bytes, context: SealContext) -> dict[str, str]:
        key = AESGCM.generate_key(KEY_BYTES * 8)
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, data, _place(context))
        return {"k": self.sealing_key, "w": self._wrap(key), "d": base64.b64encode(sealed).decode()}

    def _open_bytes(self, envelope: Mapping[str, str], context: SealContext) -> bytes:
        key = self._unwrap(envelope, str(context))
        try:
            sealed = base64.b64decode(envelope["d"])
            return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(context))
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
            raise missing_key(key_id, where)

    def _derive_stream_key(self, key_id: str, job_id: str) -> AESGCM:
        info = b"headrace stream " + job_id.encode()
        return AESGCM(HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(self._keys[key_id]))

    def _check(self, key: bytes) -> str:
        return base64.b64encode(hmac.digest(key, b"headrace key check", hashlib.sha256)).decode()

    def _token(self, key: bytes, tenant_id: str, name: str, value: str) -> str:
        message = orjson.dumps(["headrace token", tenant_id, name, value])
        return base64.b64encode(hmac.digest(key, message, hashlib.sha256)[:_TOKEN_BYTES]).decode()


def _place(context: SealContext) -> bytes:
    """Return the context as associated data, which is different for every value."""
    return orjson.dumps([context.tenant_id, context.table, context.column, context.row_id])


def _changed(where: str, key_id: str) -> CannotOpen:
    return CannotOpen(
        f"{where} does not open: it was changed, moved, or sealed with another key of the id {key_id!r}",
        code="encryption_value_invalid",
    )
