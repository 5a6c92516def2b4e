"""Digests of requests: keys of idempotency, and the response cache. No services."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.responses.new_response import NewResponse
from headrace.policy.documents import PolicyDocument
from headrace.policy.policies import Policy
from headrace.producer_api.submission.cache_lookup import CacheLookups, CacheWish, has_one_answer, read_wish
from headrace.producer_api.submission.idempotency import RequestDigests
from headrace.store.encryption.keyed_digests import Digests
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.response_cache import CacheLookup
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from headrace.store.tasks.generate import GeneratePayload, GenerateRequest
from tests.producer_api.submission.making import VERSION, draft, told
from tests.refusals import Naming
from tests.stand_ins import stand_in

KEYED, PLAIN = RequestDigests(Digests([b"new", b"old"])), RequestDigests(Digests())
POLICY = Policy(
    PolicyDocument.model_validate(
        {
            "version": 1,
            "rules": [
                {"id": "ssn", "kinds": ["us_ssn"], "action": "redact"},
                {"id": "mail", "kinds": ["email"], "action": "block"},
            ],
        }
    )
)
SSN = "SSN 536-22-1234"


def body_of(digests: RequestDigests = PLAIN, response: NewResponse | None = None, **changes: Any) -> str:
    stored = changes.pop("is_stored", None)
    request = GenerateRequest.model_validate({"model": "tiny", "input": {"prompt": "hi"}} | changes)
    found = digests.idempotency("route", "key", request, response, is_stored=stored)
    assert found is not None
    return found.fingerprint


def test_a_key_goes_with_all_that_the_request_asks_for() -> None:
    response = NewResponse("resp_1", True, False, [{"id": "msg_1", "role": "user"}], {"a": 1})
    bodies = [
        body_of(),
        body_of(KEYED),
        body_of(priority=4),
        body_of(user="u"),
        body_of(is_stored=True),
        body_of(is_stored=False),
        *(
            body_of(response=one)
            for one in (
                response,
                replace(response, previous_id=None),
                replace(response, is_stored=False),
                replace(response, is_background=True),
                replace(response, request={}),
                replace(response, appends_to="conv_1"),
                replace(response, appends_to="conv_2"),
                replace(response, appends_to="conv_1", input=[{"id": "msg_1", "role": "system"}]),
            )
        ),
    ]
    assert len(set(bodies)) == len(bodies)
    assert body_of(response=response) == body_of(response=replace(response, input=[]))
    again = replace(response, appends_to="conv_1", input=[{"id": "msg_2", "role": "user"}])
    said = {"input": {"messages": [{"role": "user", "content": "what the conversation has"}]}}
    assert body_of(response=again, **said) == body_of(
        response=replace(response, appends_to="conv_1"), input={"messages": [{"role": "user", "content": "more"}]}
    ), "what the conversation has, and the ids of items, are not compared"


def test_a_key_has_1_to_255_characters_and_the_digests_of_every_key() -> None:
    request = draft().request
    found = KEYED.idempotency("route", "k" * 255, request, None)
    assert found is not None
    assert (found.route, found.key, len(found.also)) == ("route", "k" * 255, 1)
    newest = RequestDigests(Digests([b"new"])).idempotency("route", "k", request, None)
    assert newest is not None
    assert found.fingerprint == newest.fingerprint
    for key in ("", "k" * 256):
        with pytest.raises(InvalidRequest) as caught:
            KEYED.idempotency("route", key, request, None)
        assert told(caught.value) == (InvalidRequest, Naming("1 to 255"), "invalid_value", "Idempotency-Key")
    assert KEYED.idempotency("route", None, request, None) is None


def test_a_name_that_a_policy_changes_is_a_digest_or_what_is_left_of_it() -> None:
    assert (KEYED.name(POLICY, "ann", "user"), PLAIN.name(POLICY, SSN, "user")) == ("ann", "SSN <US_SSN_1>")
    assert KEYED.name(POLICY, SSN, "user") == f"user_{Digests([b'new']).of('name', SSN.encode())[0]}"
    with pytest.raises(InvalidRequest) as caught:
        KEYED.name(POLICY, "ann@example.com", "user")
    assert told(caught.value) == (InvalidRequest, Naming("rule mail"), "policy_blocked_input", "user")


def test_a_key_that_a_policy_changes_is_known_by_the_digest_of_any_key() -> None:
    new, old = (f"user_{Digests([key]).of('name', SSN.encode())[0]}" for key in (b"new", b"old"))
    assert KEYED.key(POLICY, "plain", lambda _: True) == "plain"
    assert KEYED.key(POLICY, SSN, lambda _: False) == new
    assert KEYED.key(POLICY, SSN, lambda key: key == old) == old
    with pytest.raises(InvalidRequest) as caught:
        PLAIN.key(POLICY, SSN, lambda _: True)
    assert told(caught.value) == (
        InvalidRequest,
        Naming("HEADRACE_DIGEST_KEYS"),
        "invalid_value",
        "Idempotency-Key",
    )


def lookups(mode: Any) -> CacheLookups:
    settings = Settings(database_url="postgresql://x/y", redis_url="redis://x", response_cache=mode)
    return CacheLookups(settings.model_copy(update={"response_cache_ttl_s": 7.0}), Digests())


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
