"""Digests by which repeated values are recognised. With keys (HMAC) no value is found by trying out values.

The keys are in no database (HEADRACE_DIGEST_KEYS, or derived from keys of the seal). The digest of the first key is
stored; a value is recognised by the digest of any key. Without keys the digests are plain SHA-256: they may be stored
only of values that are stored anyway (``is_keyed``).
"""

import hashlib
import hmac
from collections.abc import Sequence

from headrace.store.seal import Seal
from headrace.store.settings import Settings

_HEX_CHARS = 32


class Digests:
    """Computes digests. Thread-safe."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = tuple(keys)

    @property
    def is_keyed(self) -> bool:
        """True if a value cannot be found from its digest without a key."""
        return bool(self._keys)

    def of(self, purpose: str, value: bytes) -> list[str]:
        """Return the digest of a value for each key, 128 bits in hex. The first one is to be stored."""
        message = b"headrace %b\0%b" % (purpose.encode(), value)
        if not self._keys:
            return [hashlib.sha256(message).hexdigest()[:_HEX_CHARS]]
        return [hmac.digest(key, message, "sha256").hex()[:_HEX_CHARS] for key in self._keys]


def open_digests(settings: Settings, seal: Seal) -> Digests:
    """Return what makes digests with the settings' keys, and with those that are derived from the seal's."""
    return Digests([*(key.encode() for key in settings.digest_keys), *seal.digest_keys()])
