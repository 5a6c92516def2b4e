"""Encrypted file contents: one data key for each, in chunks, so that any part can be read alone.

    header (2 bytes of length, JSON envelope: master key's id, wrapped data key) │ chunk 0 │ chunk 1 │ … │ last chunk

The nonce of a chunk is its number and a flag for the last chunk (STREAM, Hoang et al. 2015). The last chunk is also
bound to the digest of the content and is read first. So a truncated or exchanged content cannot be opened.
"""

import io
from typing import BinaryIO

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace.store.encryption.vault import NONCE_BYTES, Vault
from headrace.store.errors import CannotOpen

CHUNK_BYTES = 1 << 16
_TAG_BYTES = 16
_SEALED_BYTES = CHUNK_BYTES + _TAG_BYTES
_LENGTH_BYTES = 2


class SealedWriter:
    """Encrypts written data into ``out``; ``end`` writes the last chunk."""

    def __init__(self, out: BinaryIO, vault: Vault) -> None:
        self._out = out
        key, envelope = vault.seal_key()
        self._cipher = AESGCM(key)
        self._pending = bytearray()
        self._number = 0
        header = orjson.dumps(envelope)
        out.write(len(header).to_bytes(_LENGTH_BYTES, "big") + header)

    def write(self, data: bytes) -> None:
        """Append data. An incomplete chunk stays in memory."""
        self._pending += data
        # Keep one chunk: the last one is sealed with another nonce.
        while len(self._pending) > CHUNK_BYTES:
            chunk = bytes(self._pending[:CHUNK_BYTES])
            del self._pending[:CHUNK_BYTES]
            self._out.write(self._cipher.encrypt(_nonce(self._number, is_last=False), chunk, None))
            self._number += 1

    def end(self, digest: str) -> None:
        """Write the rest as the last chunk."""
        nonce = _nonce(self._number, is_last=True)
        self._out.write(self._cipher.encrypt(nonce, bytes(self._pending), digest.encode()))
        self._pending.clear()


class SealedReader(io.RawIOBase):
    """Reads an encrypted content, with ``seek``. The constructor and ``read`` raise CannotOpen for a changed chunk."""

    def __init__(self, source: BinaryIO, vault: Vault, digest: str) -> None:
        super().__init__()
        self._source = source
        self._what = f"the file content {digest}"
        self._digest = digest
        envelope = read_header(source, self._what)
        self._start = source.tell()
        self._cipher = AESGCM(vault.open_key(envelope, self._what))
        self._num_sealed = source.seek(0, io.SEEK_END) - self._start
        self._last = max(0, (self._num_sealed - 1) // _SEALED_BYTES)
        self._size = self._num_sealed - (self._last + 1) * _TAG_BYTES
        self._at = 0
        self._number, self._chunk = self._last, self._open_chunk(self._last)

    def readable(self) -> bool:
        """See ``io``."""
        return True

    def seekable(self) -> bool:
        """See ``io``."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See ``io``."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        """See ``io``."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See ``io``."""
        number, offset = divmod(self._at, CHUNK_BYTES)
        if self._at >= self._size:
            return 0
        if number != self._number:
            self._number, self._chunk = number, self._open_chunk(number)
        part = self._chunk[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        """See ``io``."""
        self._source.close()
        super().close()

    def _open_chunk(self, number: int) -> bytes:
        self._source.seek(self._start + number * _SEALED_BYTES)
        sealed = self._source.read(_SEALED_BYTES)
        is_last = number == self._last
        try:
            return self._cipher.decrypt(
                _nonce(number, is_last=is_last), sealed, self._digest.encode() if is_last else None
            )
        except InvalidTag:
            raise CannotOpen(f"{self._what} does not open: it was changed", code="encryption_value_invalid") from None


def read_header(source: BinaryIO, what: str) -> dict[str, str]:
    """Return the envelope at the start of an encrypted file. Raises CannotOpen if there is none."""
    length = int.from_bytes(source.read(_LENGTH_BYTES), "big")
    try:
        envelope: dict[str, str] = orjson.loads(source.read(length))
    except orjson.JSONDecodeError:
        raise CannotOpen(f"{what} does not open: it was changed", code="encryption_value_invalid") from None
    return envelope


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes([is_last])
