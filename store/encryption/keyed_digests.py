"""Keyed digests: by them what was sent before is recognised, and cannot be found by trying values out.

The keys are in no database (HEADRACE_DIGEST_KEYS, or derived from the encryption keys). Of several the first makes what
is stored, and what is recognised may be of any. Without keys digests are plain: of what may be stored itself they tell
nothing more, and of anything else none may be kept (``is_keyed``).
"""

import hashlib
import hmac
from collections.abc import Sequence

_HEX_CHARS = 32


class Digests:
    """Makes digests. Threads may share one."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = tuple(keys)

    @property
    def is_keyed(self) -> bool:
        """True if nobody without a key can tell what a digest is of."""
        return bool(self._keys)

    def of(self, purpose: str, value: bytes) -> list[str]:
        """Return the digest of a value under each key, that to be stored first: 128 bits in hex."""
        said = b"headrace %b\0%b" % (purpose.encode(), value)
        if not self._keys:
            return [hashlib.sha256(said).hexdigest()[:_HEX_CHARS]]
        return [hmac.digest(key, said, "sha256").hex()[:_HEX_CHARS] for key in self._keys]
