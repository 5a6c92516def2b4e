"""What one tenant's policy and grammars cost is paid by that tenant: others' requests do not wait for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from headrace.features.policy import input_policy
from headrace.features.policy.input_policy import applied
from headrace.policy.budget import Budget
from headrace.prompts.grammar import Grammars
from headrace.store.db.database import Database
from tests.producer_api.calling import error_of, num_jobs
from tests.producer_api.conftest import CONTEXT_WINDOW, MakeClient

ASK: dict[str, Any] = {"model": "tiny", "input": {"prompt": "hi"}}
DENY = {"id": "d", "deny": {"patterns": ["(?:a|b){0,500}a(?:a|b){500}"]}, "action": "block", "stage": "input"}


def under_policy(api: httpx2.Client, *rules: dict[str, Any]) -> None:
    assert api.put("/v1/policies", json={"document": {"rules": list(rules)}}).status_code == 200


@pytest.mark.parametrize("what", ["policy", "grammar"])
def test_others_do_not_wait_for_what_a_tenant_wrote(
    what: str, api: httpx2.Client, make_client: MakeClient, other_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, let_go, inside = threading.Event(), threading.Event(), []

    def slowly(call: Any) -> Any:
        def call_slowly(*args: Any, **named: Any) -> Any:
            inside.append(threading.current_thread())
            entered.set()
            assert let_go.wait(30)
            return call(*args, **named)

        return call_slowly

    if what == "policy":
        under_policy(api, DENY)
        monkeypatch.setattr(input_policy, "applied", slowly(applied))
        asked = ASK
    else:
        monkeypatch.setattr(Grammars, "make", slowly(Grammars.make))
        asked = ASK | {"sampling": {"grammar": {"kind": "regex", "text": "[a-z]{4}"}}}
    other = make_client(other_key)
    assert other.post("/v1/jobs", json=ASK).status_code == 202
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(api.post, "/v1/jobs", json=asked) for _ in range(3)]
        try:
            assert entered.wait(30)
            assert [other.post("/v1/jobs", json=ASK).status_code for _ in range(5)] == [202] * 5
            assert len(inside) == 1, "a tenant's calls are made one after the other"
            assert not any(one.done() for one in waiting)
        finally:
            let_go.set()
        assert [one.result(30).status_code for one in waiting] == [202] * 3


def test_a_text_that_takes_too_long_does_not_pass(
    api: httpx2.Client, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_policy(api, DENY)
    monkeypatch.setattr("headrace.features.policy.input_policy.Budget", lambda: Budget(0.0, a_character=0.0))
    monkeypatch.setattr("headrace.policy.scanning.WINDOW", 8)
    monkeypatch.setattr("headrace.policy.budget.SHORT", 100)  # of shorter calls, every eighth is timed
    response = api.post("/v1/jobs", json=ASK | {"input": {"prompt": "ab" * 50}})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "policy_scan_too_long", "input")
    assert "less text" in error["message"]
    assert num_jobs(db) == 0


def test_a_prompt_that_is_too_long_is_refused_before_it_is_looked_through(
    api: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_policy(api, DENY)
    looked: list[int] = []

    def noted(policy: Any, request: Any, *more: Any) -> Any:
        looked.append(len(request.input.model_dump_json()))
        return applied(policy, request, *more)

    monkeypatch.setattr(input_policy, "applied", noted)
    long = "1234567 " * CONTEXT_WINDOW
    response = api.post("/v1/jobs", json={"model": "tiny", "input": {"prompt": long}})
    assert (response.status_code, error_of(response)["code"]) == (400, "context_length_exceeded")
    assert looked == []
    messages = [{"role": "user", "content": long}, {"role": "user", "content": "hi"}]
    body = {"model": "tiny", "input": {"messages": messages}, "truncation": "auto"}
    response = api.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    assert [size < len(long) for size in looked] == [True]


def test_patterns_that_are_too_much_together_are_refused_with_the_one_that_is(api: httpx2.Client) -> None:
    patterns = [f"{word}(?:a|b){{0,500}}a(?:a|b){{500}}" for word in "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuv"]
    response = api.put("/v1/policies", json={"document": {"rules": [DENY | {"deny": {"patterns": patterns}}]}})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "document")
    assert "{m,n}" in error["message"]
