"""Digests of a request, which are stored to recognise it when it is sent again.

With digest keys (``store.digests``) the digest is of the request as it was sent. Without keys, if a
policy has changed the request, the digest is of the changed request only: a plain digest would let a reader of the
database guess the replaced text.
"""

import orjson

from headrace.store.digests import Digests
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.face_row import FaceRow
from headrace.store.payloads.job_payload import JobTerms

MAX_KEY_CHARS = 255


class RequestDigests:
    """Makes the digests of requests."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests

    @property
    def is_keyed(self) -> bool:
        """True if digests may contain text that a policy removes."""
        return self._digests.is_keyed

    def of(self, purpose: str, content: bytes) -> list[str]:
        """Return the digests of a content, the first of which is stored."""
        return self._digests.of(purpose, content)

    def fingerprints(self, sent: str) -> list[str]:
        """Return the fingerprints of a request, the first of which is stored. ``sent``: the digest of all its bytes."""
        return self._digests.of("request", sent.encode())

    def idempotency(
        self,
        route: str,
        key: str | None,
        request: JobTerms,
        response: FaceRow | None,
        *,
        is_stored: bool | None = None,
    ) -> Idempotency | None:
        """Return the Idempotency-Key with the digests of its request. Raises InvalidRequest."""
        if key is None:
            return None
        if not 0 < len(key) <= MAX_KEY_CHARS:
            raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
        asked = request.model_dump(mode="json")
        asked |= request.digest_fields()
        if is_stored is not None:
            asked["store"] = is_stored
        if response is not None:
            asked = response.digested(asked)
        body = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        first, *others = self._digests.of("body", body)
        return Idempotency(route, key, first, tuple(others))
