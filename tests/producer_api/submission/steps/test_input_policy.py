"""A tenant's policy on the input of a submission, as values go in and out. No services."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.responses.new_response import NewResponse
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.producer_api.submission import input_policy
from headrace.producer_api.submission.input_policy import (
    PolicyOutcome,
    applied,
    changed_by,
    check_fixed,
    check_items,
    check_pipeline_text,
    check_template,
    guarded,
    pinned,
    refuse_images,
)
from headrace.store.errors import InvalidRequest, Unavailable
from headrace.store.payloads.job_payload import PinnedPolicy, PolicyHit
from headrace.store.registry.policies import StoredPolicy
from headrace.store.tasks.generate import GenerateRequest
from tests.producer_api.submission.steps.making import MAIL, OTHER, REDACT, active, policy, request
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
    for check, param, what in (
        (check_template, "messages", "template"),
        (check_pipeline_text, "steps", "pipeline"),
    ):
        assert refusal(check, REDACT, document)[1:] == (Naming("rule mail", what), "policy_blocked_input", param)
        check(FLAG, document)
    items = [{"role": "user", "content": MAIL}]
    assert refusal(check_items, REDACT, items)[1:] == (Naming("rule mail"), "policy_blocked_input", "items")
    assert refusal(check_items, REDACT, [{"role": "user", "name": MAIL}])[1:] == (
        REFUSED,
        "policy_blocked_input",
        "items",
    )
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
    no_services: Any = SimpleNamespace()

    def rows(version: int) -> list[StoredPolicy]:
        made: Any = [SimpleNamespace(model=name, version=version, document=stored) for name in ("", "tiny")]
        return list(made)

    current = rows(1)
    monkeypatch.setattr(
        "headrace.producer_api.submission.input_policy.policies.list_policies",
        lambda _, tenant_id: current if tenant_id == "acme" else [],
    )
    kept = input_policy.ActivePolicies(no_services, clock=lambda: now[0])
    first, of_others = kept.policy_for("acme", "tiny"), kept.policy_for("acme", "other")
    assert first is not None
    assert of_others is not None
    assert (first.model, of_others.model, kept.policy_for("globex", "tiny")) == ("tiny", "", None)
    now[0] = 5.0
    assert kept.policy_for("acme", "tiny") is first
    current = rows(2)
    now[0] = 9.9
    assert kept.policy_for("acme", "tiny") is first
    now[0] = 10.0
    assert kept.policy_for("acme", "tiny") is not first


def test_values_are_put_back_only_where_payloads_are_sealed() -> None:
    restoring = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input", "restore": True})
    outcome = applied(restoring, request({"prompt": MAIL}))
    kind, message, *_ = refusal(pinned, active(restoring), outcome, is_sealed=False)
    assert (kind, "HEADRACE_ENCRYPTION_KEYS" in message) == (Unavailable, True)
    kept = pinned(active(restoring), outcome, is_sealed=True)
    assert kept is not None
    assert kept.vault == outcome.vault.model_dump(mode="json")
    assert MAIL in str(kept.vault)
