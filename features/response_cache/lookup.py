"""Whether a request may get the answer of another job, and the digest by which the response cache knows it.

Only requests with one possible answer use the cache: greedy ones, those with a seed on the own engine, and those of
tasks that sample nothing. The digest is of all that decides the answer: the model version, the tenant's policy, the
task and the payload.
"""

from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

import orjson

from headrace.features.response_cache.entries import CacheLookup
from headrace.producer_api.access.rate_limits import CACHE_HEADER, Headers
from headrace.producer_api.http.requests import ASK_HEADER
from headrace.producer_api.submission.draft_job import DraftJob, known
from headrace.producer_api.submission.submission_hook import SubmissionHook, SubmissionParts
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.jobs import Accepted, NewJob
from headrace.store.payloads.conversation import images_of, urls_of
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.generate import GeneratePayload

BYPASS: Final = "bypass"
"""The result of a request that the cache could not serve, beside those of ``CacheResult``."""


class CacheWish(StrEnum):
    """What a request says about the response cache."""

    USE = "use"
    BYPASS = "bypass"


def read_wish(value: str | None) -> CacheWish | None:
    """Parse the header. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        return CacheWish(value.strip().lower())
    except ValueError:
        raise InvalidRequest(f"{ASK_HEADER} is `use` or `bypass`, not {value[:40]!r}", param=ASK_HEADER) from None


class CacheOff(SubmissionHook):
    """What is left of the cache where the settings have none."""

    def check(self, draft: DraftJob) -> None:
        """Raise InvalidRequest for a wish that is none."""
        read_wish(draft.origin.cache)


class CacheLookups(CacheOff):
    """Makes the lookups of requests, by the settings of this process."""

    def __init__(self, parts: SubmissionParts) -> None:
        self._mode = parts.settings.response_cache
        self._ttl_s = parts.settings.response_cache_ttl_s
        self._digests = parts.digests
        self._metrics = parts.metrics

    def with_job(self, draft: DraftJob, job: NewJob) -> NewJob:
        """Return the job with its lookup, if it may get the answer of another one."""
        if job.start_after is not None:
            return job  # those that share its answer would wait for it
        wish, version = read_wish(draft.origin.cache), known(draft.version)
        lookup = self.lookup(wish, version, draft.policy_version, draft.payload, job.payload, task=job.task)
        return job if lookup is None else replace(job, lookup=lookup)

    def accepted(self, outcome: Accepted, draft: DraftJob | None) -> Headers:
        """Count and tell what the cache did for the job, if it was concerned."""
        wish = None if draft is None else read_wish(draft.origin.cache)
        if outcome.replayed or not self.is_concerned(wish):
            return {}
        result = BYPASS if outcome.cache is None else outcome.cache.value
        self._metrics.cache_results.labels(result).inc()
        return {CACHE_HEADER: result}

    def is_concerned(self, wish: CacheWish | None) -> bool:
        """Return True if the answer tells the caller what the cache did."""
        return self._mode == "on" or (self._mode == "asked" and wish is CacheWish.USE)

    def lookup(
        self,
        wish: CacheWish | None,
        version: ModelVersion,
        policy: tuple[str, int] | None,
        payload: Any,
        stored: dict[str, Any],
        *,
        task: str,
    ) -> CacheLookup | None:
        """Return the lookup of a request for ``task``; None if it is computed in any case.

        ``policy``: name and version of the tenant's policy. ``stored``: the payload as JSON.
        """
        if wish is CacheWish.BYPASS or not self.is_concerned(wish) or not has_one_answer(payload, version):
            return None
        decides = {
            "version": [version.model, version.version, version.digest],
            "task": task,
            "policy": policy,
            "payload": _without_values(stored),
        }
        canonical = orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)
        return CacheLookup(self._digests.of("response", canonical)[0], self._ttl_s)


def has_one_answer(payload: Any, version: ModelVersion) -> bool:
    """Return True if every computation of the payload gives the same answer."""
    if urls_of(images_of(payload.input)):
        return False  # what a server has behind a URL may change
    if not isinstance(payload, GeneratePayload):
        return True  # no other task samples
    sampling = payload.sampling
    return sampling.temperature == 0 or (sampling.seed is not None and version.engine.kind is EngineKind.NATIVE)


def _without_values(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the payload without the texts that stand for its placeholders: the model does not see them."""
    policy = stored.get("policy")
    if not policy:
        return stored
    return {**stored, "policy": {name: value for name, value in policy.items() if name != "vault"}}
