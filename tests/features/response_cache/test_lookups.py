"""Which requests use the response cache, by what their answers are found, and what is counted. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.response_cache.entries import CacheLookup
from headrace.features.response_cache.lookup import CacheLookups, CacheWish, has_one_answer, read_wish
from headrace.producer_api.submission.enqueue import RequestDigests
from headrace.store.digests import Digests
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.jobs import Accepted
from headrace.store.metrics.api_metrics import ApiMetrics
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import CacheResult
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GeneratePayload
from tests.producer_api.submission.making import VERSION, draft, told
from tests.refusals import Naming
from tests.stand_ins import stand_in


def lookups(mode: Any, metrics: ApiMetrics | None = None) -> CacheLookups:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x", response_cache=mode)
    parts: Any = SimpleNamespace(
        settings=settings.model_copy(update={"response_cache_ttl_s": 7.0}),
        digests=RequestDigests(Digests()),
        metrics=metrics or ApiMetrics(),
    )
    return CacheLookups(parts)


def payload(temperature: float = 0.0, seed: int | None = None, **source: Any) -> GeneratePayload:
    sampling = {"max_tokens": 4, "temperature": temperature, "seed": seed}
    return GeneratePayload.model_validate({"input": {"prompt": "hi"} | source, "sampling": sampling})


def test_the_cache_is_for_those_that_the_setting_names() -> None:
    wishes = (None, CacheWish.USE, CacheWish.BYPASS)
    concerned = {mode: [lookups(mode).is_concerned(wish) for wish in wishes] for mode in ("off", "asked", "on")}
    assert concerned == {"off": [False] * 3, "asked": [False, True, False], "on": [True] * 3}
    assert lookups("on").lookup(CacheWish.BYPASS, VERSION, None, payload(), {}, task="generate") is None
    assert lookups("asked").lookup(None, VERSION, None, payload(), {}, task="generate") is None
    assert (read_wish(None), read_wish(" Bypass ")) == (None, CacheWish.BYPASS)
    with pytest.raises(InvalidRequest) as caught:
        read_wish("x" * 50)
    named = Naming("`use` or `bypass`", repr("x" * 40))
    assert told(caught.value) == (InvalidRequest, named, "invalid_value", "Headrace-Cache")


def test_an_answer_is_known_by_all_that_decides_it() -> None:
    def found(
        version: ModelVersion = VERSION, policy: tuple[str, int] | None = None, task: str = "generate", **stored: Any
    ) -> CacheLookup:
        lookup = lookups("on").lookup(None, version, policy, payload(), stored, task=task)
        assert lookup is not None
        assert lookup.ttl_s == 7.0
        return lookup

    different = [
        found(),
        found(replace(VERSION, model="other")),
        found(replace(VERSION, version=2)),
        found(replace(VERSION, digest="1")),
        found(policy=("", 1)),
        found(policy=("", 2)),
        found(task="embed"),
        found(a=1),
        found(b=1),
    ]
    assert len({one.digest for one in different}) == len(different)
    values = [{"counts": {"EMAIL": 1}, "vault": {"a": number}} for number in range(2)]
    first, second = (lookups("on").lookup(None, VERSION, None, payload(), {"policy": one}, task="t") for one in values)
    assert first == second, "the model does not see the values of placeholders"


def test_only_a_request_with_one_answer_shares_it() -> None:
    other = replace(VERSION, engine=stand_in(kind=EngineKind.OPENAI))
    cases = [
        (payload(), VERSION),
        (payload(), other),
        (payload(1.0), VERSION),
        (payload(1.0, 0), VERSION),
        (payload(1.0, 0), other),
    ]
    assert [has_one_answer(*case) for case in cases] == [True, True, False, True, False]


def test_what_the_cache_did_is_counted_for_those_that_it_concerns() -> None:
    metrics = ApiMetrics()
    made = lookups("asked", metrics)

    def result(cache: CacheResult | None, wish: str | None = "use", replayed: bool = False) -> str | None:
        outcome = Accepted("job_1", replayed, announced=False, cache=cache)
        return made.accepted(outcome, draft(cache=wish)).get("X-Cache")

    assert [result(CacheResult.HIT), result(CacheResult.MISS), result(None)] == ["hit", "miss", "bypass"]
    assert [result(CacheResult.HIT, None), result(CacheResult.HIT, replayed=True)] == [None, None]
    assert made.accepted(Accepted("job_1", False, announced=False), None) == {}, "a line of a batch asks for nothing"
    read = metrics.registry.get_sample_value
    counts = {
        name: read("headrace_cache_results_total", {"result": name}) for name in ("hit", "miss", "bypass", "shared")
    }
    assert counts == {"hit": 1, "miss": 1, "bypass": 1, "shared": 0}
