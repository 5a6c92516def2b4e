"""Encrypted file contents: one data key for each, in chunks, so that any part can be read alone.

    header (2 bytes of length, JSON envelope: master key's id, wrapped data key) │ chunk 0 │ chunk 1 │ … │ last chunk

The nonce of a chunk is its number and a flag for the last chunk (STREAM, Hoang et al. 2015). The last chunk is also
bound to the digest of the content and is read first. So a truncated or exchanged content cannot be opened.
"""

import io
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from headrace.store.errors import CannotOpen
from headrace.store.seal import FileWriter

NONCE_BYTES = 12
CHUNK_BYTES = 1 << 16
_TAG_BYTES = 16
_SEALED_BYTES = CHUNK_BYTES + _TAG_BYTES


class SealedWriter(FileWriter):
    """Encrypts written data into ``out``, which has the header; ``end`` writes the last chunk."""

    def __init__(self, out: BinaryIO, key: bytes) -> None:
        super().__init__(out)
        self._cipher = AESGCM(key)
        self._pending = bytearray()
        self._number = 0

    def write(self, data: bytes) -> None:
        """Append data. An incomplete chunk stays in memory."""
        self._pending += data
        # Keep one chunk: the last one is sealed with another nonce.
        while len(self._pending) > CHUNK_BYTES:
            chunk = bytes(self._pending[:CHUNK_BYTES])
            del self._pending[:CHUNK_BYTES]
            self._out.write(self._cipher.encrypt(_nonce(self._number, is_last=False), chunk, None))
            self._number += 1

    def end(self, name: str) -> None:
        """Write the rest as the last chunk."""
        nonce = _nonce(self._number, is_last=True)
        self._out.write(self._cipher.encrypt(nonce, bytes(self._pending), name.encode()))
        self._pending.clear()


class SealedReader(io.RawIOBase):
    """Reads an encrypted content, with ``seek``. The constructor and ``read`` raise CannotOpen for a changed chunk.

    ``source`` is read up to the end of the header. ``where``: the content, for errors.
    """

    def __init__(self, source: BinaryIO, key: bytes, name: str, where: str) -> None:
        super().__init__()
        self._source = source
        self._where = where
        self._name = name
        self._start = source.tell()
        self._cipher = AESGCM(key)
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
                _nonce(number, is_last=is_last), sealed, self._name.encode() if is_last else None
            )
        except InvalidTag:
            raise CannotOpen(f"{self._where} does not open: it was changed", code="encryption_value_invalid") from None


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(NONCE_BYTES - 1, "big") + bytes([is_last])
