"""Digests of requests: keys of idempotency. No services."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.responses.new_response import NewResponse
from headrace.producer_api.submission.enqueue import RequestDigests
from headrace.store.digests import Digests
from headrace.store.errors import InvalidRequest
from headrace.store.tasks.generate import GenerateRequest
from tests.producer_api.submission.making import draft, told
from tests.refusals import Naming

KEYED, PLAIN = RequestDigests(Digests([b"new", b"old"])), RequestDigests(Digests())


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
