"""Digests of a request, which are stored to recognise it when it is sent again.

With digest keys (``store.digests``) the digest is of the request as it was sent. Without keys, if a
policy has changed the request, the digest is of the changed request only: a plain digest would let a reader of the
database guess the replaced text.
"""

from collections.abc import Callable

import orjson

from headrace.policy.policies import Policy
from headrace.producer_api.submission.input_policy import changed_by
from headrace.store.digests import Digests
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.face_row import FaceRow
from headrace.store.payloads.job_payload import JobTerms

MAX_KEY_CHARS = 255


class RequestDigests:
    """Makes the digests of requests and of names that callers choose."""

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

    def name(self, policy: Policy, name: str, param: str) -> str:
        """Return a name that the caller chose, as it may be stored. Raises InvalidRequest.

        If the policy changes the name, that is a digest of it, or without digest keys the changed name.
        """
        left = changed_by(policy, name, param)
        if left is None:
            return name
        return f"user_{self._digests.of('name', name.encode())[0]}" if self.is_keyed else left

    def key(self, policy: Policy, key: str, is_known: Callable[[str], bool]) -> str:
        """Return an Idempotency-Key as it is stored: if the policy changes it, its digest. Raises InvalidRequest."""
        param = "Idempotency-Key"
        if changed_by(policy, key, param) is None:
            return key
        if not self.is_keyed:
            raise InvalidRequest(
                "the policy takes something out of this Idempotency-Key, and this server has no HEADRACE_DIGEST_KEYS: "
                "send a random one",
                param=param,
            )
        first, *others = (f"user_{digest}" for digest in self._digests.of("name", key.encode()))
        return next((one for one in others if is_known(one)), first)
