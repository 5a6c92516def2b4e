"""What is stored of a request so that it is known when it comes again: digests, and none from which it could be found.

With keys (``store.encryption.keyed_digests``) they are of the request as it was sent. Without, and where a policy has
changed the request, only of what is stored of it. What earlier releases stored is still recognised.
"""

import hashlib
from collections.abc import Callable

import orjson

from policy.policies import Policy
from producer_api.submission.input_policy import changed_by
from store.encryption.keyed_digests import Digests
from store.errors import InvalidRequest
from store.jobs.acceptance import Idempotency
from store.jobs.responses import NewResponse
from store.tasks.registry import JobRequest

MAX_KEY_CHARS = 255


class RequestDigests:
    """Makes the digests of requests and of callers' own names for things."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests

    @property
    def is_keyed(self) -> bool:
        """True if digests may be of what a policy takes out."""
        return self._digests.is_keyed

    def fingerprints(self, sent: str) -> list[str]:
        """Return what a request is known by, of which the first is stored; ``sent`` is the digest of all its bytes."""
        return [*self._digests.of("request", sent.encode()), sent]

    def idempotency(
        self, route: str, key: str | None, request: JobRequest, response: NewResponse | None
    ) -> Idempotency | None:
        """Return the caller's key, with the digests of what came with it. Raises InvalidRequest."""
        if key is None:
            return None
        if not 0 < len(key) <= MAX_KEY_CHARS:
            raise InvalidRequest(f"an Idempotency-Key has 1 to {MAX_KEY_CHARS} characters", param="Idempotency-Key")
        asked = request.model_dump(mode="json")
        asked |= request.digest_fields()
        if response is not None:
            # Not its input: the items got new ids, and are in the request as messages.
            asked["response"] = [response.previous_id, response.is_stored, response.is_background, response.request]
        body = orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        first, *others = self._digests.of("body", body)
        return Idempotency(route, key, first, (*others, hashlib.sha256(body).hexdigest()))

    def name(self, policy: Policy, name: str, param: str) -> str:
        """Return the caller's own name for something; if the policy takes something out of it a digest, or without
        keys what the policy leaves. Raises InvalidRequest."""
        left = changed_by(policy, name, param)
        if left is None:
            return name
        return f"user_{self._names(name)[0]}" if self.is_keyed else left

    def key(self, policy: Policy, key: str, is_known: Callable[[str], bool]) -> str:
        """Return an Idempotency-Key, or the digest of it that is known here or shall be. Raises InvalidRequest."""
        param = "Idempotency-Key"
        if changed_by(policy, key, param) is None:
            return key
        if not self.is_keyed:
            raise InvalidRequest(
                "the policy takes something out of this Idempotency-Key, and this server has no HEADRACE_DIGEST_KEYS: "
                "send a random one",
                param=param,
            )
        first, *others = (f"user_{digest}" for digest in self._names(key))
        return next((one for one in others if is_known(one)), first)

    def _names(self, name: str) -> list[str]:
        return [*self._digests.of("name", name.encode()), hashlib.blake2b(name.encode(), digest_size=16).hexdigest()]
