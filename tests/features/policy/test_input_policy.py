"""A tenant's policy on the input of a submission, as values go in and out. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.policy import input_policy
from headrace.features.policy.input_policy import (
    PolicyOutcome,
    applied,
    changed_by,
    check_fixed,
    check_unchanged,
    guarded,
    pinned,
    refuse_images,
)
from headrace.features.policy.policies import StoredPolicy
from headrace.features.responses.new_response import NewResponse
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.producer_api.submission.enqueue import RequestDigests
from headrace.producer_api.submission.text_guard import TextGuards
from headrace.store.digests import Digests
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.tasks.generate import GenerateRequest
from tests.features.policy.making import MAIL, OTHER, REDACT, active, policy
from tests.producer_api.submission.making import told
from tests.producer_api.submission.steps.making import request
from tests.refusals import Naming, refusal

INPUT_ONLY = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"})
FLAG = policy({"id": "mail", "kinds": ["email"], "action": "flag", "stage": "input"})
BLOCK = policy({"id": "mail", "kinds": ["email"], "action": "block"})
OUTPUTS = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "output"})
REFUSED = "the policy's rule mail does not let this input in"


def test_every_text_of_a_request_is_replaced_and_no_name() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": f'{{"to": "{MAIL}"}}'}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": OTHER}
    turns = [
        {"role": "user", "content": f"to {MAIL}"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        result,
    ]
    sent = request({"messages": turns}, metadata={MAIL: f"for {OTHER}", "k": "v"})
    done = applied(REDACT, sent)
    made: Any = done.request
    first, second, third = (one.model_dump(mode="json", exclude_none=True) for one in made.input.messages)
    assert first["content"] == "to <EMAIL_1>"
    assert second["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"to": "<EMAIL_1>"}'}
    assert (third["content"], third["tool_call_id"]) == ("<EMAIL_2>", "call_1")
    assert made.metadata == {"<EMAIL_1>": "for <EMAIL_2>", "k": "v"}
    assert (done.actions, done.flagged, done.vault.counts) == ({"redact": 5}, (), {"EMAIL": 2})
    assert sent.metadata == {MAIL: f"for {OTHER}", "k": "v"}, "the request itself is as it was"


def test_what_a_response_shows_again_is_replaced_too() -> None:
    shown = {
        "instructions": MAIL,
        "user": MAIL,
        "text": {"format": {"type": "text"}},
        "tool_choice": {"type": "function", "name": "f"},
        "temperature": 1,
    }
    items = [{"id": "msg_1", "role": "user", "content": MAIL}]
    response = NewResponse(None, True, False, items, shown)
    done = applied(REDACT, request({"messages": [{"role": "user", "content": MAIL}]}), response)
    assert isinstance(done.response, NewResponse)
    assert done.response.input == [{"id": "msg_1", "role": "user", "content": "<EMAIL_1>"}]
    assert done.response.request == shown | {"instructions": "<EMAIL_1>", "user": "<EMAIL_1>"}
    before = PlaceholderMap()
    again = applied(
        REDACT, request({"prompt": OTHER}), None, applied(REDACT, request({"prompt": MAIL}), None, before).vault
    )
    source: Any = again.request.input
    assert source.prompt == "<EMAIL_2>", "numbers go on behind those of the response before"


def test_flags_are_told_by_rule_with_their_number() -> None:
    done = applied(FLAG, request({"prompt": f"{MAIL} {OTHER}"}))
    assert (done.flagged, done.actions) == (
        (PolicyHit(rule="mail", kind="email", action="flag", count=2),),
        {"flag": 2},
    )
    source: Any = done.request.input
    assert source.prompt == f"{MAIL} {OTHER}"


@pytest.mark.parametrize(
    ("rules", "sent", "error"),
    [
        (BLOCK, request({"prompt": MAIL}), (REFUSED, "policy_blocked_input", "input")),
        (BLOCK, request({"prompt": "x"}, metadata={"a": MAIL}), (REFUSED, "policy_blocked_input", "input")),
        (
            REDACT,
            request({"token_ids": [1]}),
            (Naming("token ids"), "invalid_value", "input"),
        ),
        (
            REDACT,
            request({"prompts": [[1], [2]]}),
            (Naming("token ids"), "invalid_value", "input"),
        ),
        (REDACT, request({"prompt": "x"}, sampling={"stop": [MAIL]}), (REFUSED, "policy_blocked_input", "input")),
        (
            OUTPUTS,
            request({"prompt": "x"}, sampling={"logprobs": 1}),
            (
                Naming("`sampling.logprobs`"),
                "unsupported_parameter",
                "sampling.logprobs",
            ),
        ),
    ],
)
def test_what_a_policy_cannot_let_in_is_refused(
    rules: Policy, sent: GenerateRequest, error: tuple[object, str, str]
) -> None:
    assert refusal(applied, rules, sent) == (InvalidRequest, *error)


def test_texts_without_a_job_are_refused_if_a_policy_would_change_them() -> None:
    assert guarded(REDACT, {"metadata": {"a": MAIL}}, "metadata") == {"metadata": {"a": "<EMAIL_1>"}}
    assert refusal(guarded, BLOCK, {"metadata": {"a": MAIL}}, "metadata")[1:] == (
        REFUSED,
        "policy_blocked_input",
        "metadata",
    )
    assert (changed_by(REDACT, "ann", "user"), changed_by(REDACT, MAIL, "user")) == (None, "<EMAIL_1>")
    check_fixed(REDACT, "ann", "name")
    assert refusal(check_fixed, REDACT, MAIL, "name")[1:] == (REFUSED, "policy_blocked_input", "name")
    assert refusal(check_fixed, REDACT, "ann\\u0040example.com", "name")[1:] == (
        REFUSED,
        "policy_blocked_input",
        "name",
    )
    document = {"messages": [{"role": "user", "content": MAIL}], "steps": [MAIL]}
    for param, what in (("messages", "template"), ("steps", "pipeline")):
        refused = refusal(check_unchanged, REDACT, document, param, what)
        assert refused[1:] == (Naming("rule mail", what), "policy_blocked_input", param)
        check_unchanged(FLAG, document, param, what)
    items = [{"role": "user", "content": MAIL}]
    unfit = [{"role": "user", "name": MAIL}]
    for given, message in ((items, Naming("rule mail")), (unfit, REFUSED)):
        refused = refusal(check_unchanged, REDACT, given, "items", "these items", with_names=True)
        assert refused[1:] == (message, "policy_blocked_input", "items")
    assert refusal(refuse_images, REDACT, "input")[1:] == (Naming("images"), "invalid_value", "input")
    refuse_images(OUTPUTS, "input")


def test_a_policy_is_pinned_if_its_output_or_a_worker_needs_it() -> None:
    outcome = applied(REDACT, request({"prompt": MAIL}))
    kept = pinned(active(REDACT), outcome, is_sealed=True)
    assert kept is not None
    assert (kept.model, kept.version, kept.counts) == ("tiny", 7, {"EMAIL": 1})
    plain = PolicyOutcome(request(), None, PlaceholderMap())
    assert pinned(active(INPUT_ONLY), plain, is_sealed=True) is None
    assert pinned(active(INPUT_ONLY), plain, is_sealed=True, reads_file=True) == PinnedPolicy(model="tiny", version=7)
    hit = PolicyHit(rule="r", kind="k", action="flag", count=1)
    assert pinned(active(INPUT_ONLY), replace(plain, flagged=(hit,)), is_sealed=False) == PinnedPolicy(
        model="tiny", version=7, flagged=(hit,)
    )


def test_a_version_of_a_policy_that_is_known_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stored = [0.0], {"version": 1, "rules": []}
    no_services: Any = SimpleNamespace(db=None)

    def rows(version: int) -> list[StoredPolicy]:
        made: Any = [SimpleNamespace(model=name, version=version, document=stored) for name in ("", "tiny")]
        return list(made)

    current = rows(1)
    monkeypatch.setattr(
        "headrace.features.policy.input_policy.policies.list_policies",
        lambda _, tenant_id: current if tenant_id == "acme" else [],
    )
    kept = TextGuards(input_policy.active_policies(no_services), clock=lambda: now[0])
    first, of_others = kept.in_force("acme", "tiny"), kept.in_force("acme", "other")
    assert first is not None
    assert of_others is not None
    assert (first.version[0], of_others.version[0], kept.in_force("globex", "tiny")) == ("tiny", "", None)
    now[0] = 5.0
    assert kept.in_force("acme", "tiny") is first
    current = rows(2)
    now[0] = 9.9
    assert kept.in_force("acme", "tiny") is first
    now[0] = 10.0
    assert kept.in_force("acme", "tiny") is not first


def test_values_are_put_back_only_where_payloads_are_sealed() -> None:
    restoring = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input", "restore": True})
    outcome = applied(restoring, request({"prompt": MAIL}))
    kind, message, *_ = refusal(pinned, active(restoring), outcome, is_sealed=False)
    assert (kind, "HEADRACE_ENCRYPTION_KEYS" in message) == (Unavailable, True)
    kept = pinned(active(restoring), outcome, is_sealed=True)
    assert kept is not None
    assert kept.vault == outcome.vault.model_dump(mode="json")
    assert MAIL in str(kept.vault)


POLICY = policy(
    {"id": "ssn", "kinds": ["us_ssn"], "action": "redact"},
    {"id": "mail", "kinds": ["email"], "action": "block"},
)
KEYED = active(POLICY, digests=RequestDigests(Digests([b"new", b"old"])))
PLAIN = active(POLICY, digests=RequestDigests(Digests()))
SSN = "SSN 536-22-1234"


def test_a_name_that_a_policy_changes_is_a_digest_or_what_is_left_of_it() -> None:
    assert (KEYED.name("ann", "user"), PLAIN.name(SSN, "user")) == ("ann", "SSN <US_SSN_1>")
    assert KEYED.name(SSN, "user") == f"user_{Digests([b'new']).of('name', SSN.encode())[0]}"
    with pytest.raises(InvalidRequest) as caught:
        KEYED.name("ann@example.com", "user")
    assert told(caught.value) == (InvalidRequest, Naming("rule mail"), "policy_blocked_input", "user")


def test_a_key_that_a_policy_changes_is_known_by_the_digest_of_any_key() -> None:
    new, old = (f"user_{Digests([key]).of('name', SSN.encode())[0]}" for key in (b"new", b"old"))
    assert KEYED.key("plain", lambda _: True) == "plain"
    assert KEYED.key(SSN, lambda _: False) == new
    assert KEYED.key(SSN, lambda key: key == old) == old
    with pytest.raises(InvalidRequest) as caught:
        PLAIN.key(SSN, lambda _: True)
    assert told(caught.value) == (
        InvalidRequest,
        Naming("HEADRACE_DIGEST_KEYS"),
        "invalid_value",
        "Idempotency-Key",
    )
