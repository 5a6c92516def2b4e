"""Jobs of several steps under a tenant's policy: which texts it reads, and how a repeated request is recognised."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.policy.policies import Policy
from headrace.producer_api.submission.enqueue import RequestDigests
from headrace.prompts.tasks.task_inputs import Prepared
from headrace.store.digests import Digests
from headrace.store.errors import Unavailable
from headrace.store.jobs.jobs import NewJob
from headrace.store.registry.models import ModelVersion
from headrace.store.tasks.flow import FlowRequest
from headrace.store.tasks.generate import GenerateRequest
from tests.features.policy.making import MAIL, OTHER, REDACT, active, policy
from tests.producer_api.submission.test_making_jobs import Parts, flow, make, origin
from tests.refusals import refusal


class Policed(Parts):
    """Parts with a policy for every model."""

    def __init__(self, rules: Policy, *, is_keyed: bool = False, **changes: Any) -> None:
        super().__init__(digests=RequestDigests(Digests([b"key"] if is_keyed else [])), **changes)
        guard = active(rules, db=self.db, digests=self.digests, metrics=self.metrics)
        self.guards = SimpleNamespace(in_force=lambda tenant_id, model: guard)

    def cut_to_length(self, request: Any, _version: object) -> Any:
        return request

    def prepare(self, request: Any, version: ModelVersion, policy: object) -> Prepared:
        if isinstance(request, GenerateRequest):
            return super().prepare(request, version, policy)
        return Prepared(request.input, 1, 1)


def sent(mail: str, **changes: Any) -> FlowRequest:
    return flow(input={"text": f"to {mail}"}, **changes)


def made(parts: Any, asked: FlowRequest, **of_origin: Any) -> NewJob:
    job, _ = make(parts, asked, origin=origin(**of_origin))
    return job


def test_the_policy_reads_the_steps_and_the_names_that_the_caller_chose() -> None:
    parts = Policed(REDACT)
    job = made(parts, sent(MAIL, user=MAIL, metadata={"of": MAIL}), project_id=MAIL)
    second, first = job.steps
    assert first.payload["input"]["prompt"] == "to <EMAIL_1>"
    assert (job.metadata, job.user_id, job.project_id) == ({"of": "<EMAIL_1>"}, "<EMAIL_1>", "<EMAIL_1>")
    assert (first.project_id, second.project_id) == ("<EMAIL_1>", "<EMAIL_1>")
    assert MAIL not in str(replace(job, steps=())) + str(job.steps)
    read = parts.metrics.registry.get_sample_value
    assert read("headrace_input_policy_actions_total", {"action": "redact"}) == 1
    refused = refusal(made, parts, sent(MAIL), idempotency_key=MAIL)
    assert refused[3] == "Idempotency-Key"


def test_without_digest_keys_nothing_of_a_removed_text_is_in_a_digest() -> None:
    one, other = (made(Policed(REDACT), sent(mail)) for mail in (MAIL, OTHER))
    assert one.fingerprint is None
    assert one.idempotency == other.idempotency is not None
    longer = made(Policed(REDACT), flow(input={"text": "another text"}))
    assert longer.idempotency != one.idempotency
    one, other = (made(Policed(REDACT, is_keyed=True), sent(mail)) for mail in (MAIL, OTHER))
    assert one.fingerprint == other.fingerprint is not None
    assert one.idempotency != other.idempotency
    key = made(Policed(REDACT, is_keyed=True), sent(MAIL), idempotency_key=MAIL).idempotency
    assert key is not None
    assert key.key.startswith("user_")


def test_values_that_are_put_back_are_shared_by_the_steps_and_need_encryption() -> None:
    restoring = policy({"id": "mail", "kinds": ["email"], "action": "redact", "restore": True})
    second = {"name": "second", "model": "tiny", "input": {"prompt": f"{OTHER} {MAIL}"}, "needs": ["first"]}
    first = {"name": "first", "model": "tiny", "input": {"prompt": f"to {MAIL}"}}
    asked = flow(steps=[first, second])
    with pytest.raises(Unavailable, match="HEADRACE_ENCRYPTION_KEYS"):
        made(Policed(restoring), asked)
    sealed = Policed(restoring, db=SimpleNamespace(seal=SimpleNamespace(is_on=True)))
    prompts = [step.payload["input"]["prompt"] for step in made(sealed, asked).steps]
    assert prompts == ["to <EMAIL_1>", "<EMAIL_2> <EMAIL_1>"]


def test_a_step_keeps_the_policy_for_texts_that_come_from_outside() -> None:
    """Its worker applies it. A policy for inputs alone is of no use to the other steps of these jobs."""
    rules = policy({"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"})
    _, steps = make(Policed(rules), flow())
    assert [step.policy for step in steps] == [None, None]
    call = {"name": "call", "task": "call_tool", "model": "tiny", "input": {"tool": "weather", "arguments": {}}}
    said = {"name": "said", "model": "tiny", "input": {"prompt": "x"}}
    prompt = {"$from": "call.output.text"}
    third = {"name": "third", "model": "tiny", "needs": ["call", "said"]}
    for texts, is_kept in (
        ({"prompt": {"$from": "said.output.text"}}, False),
        ({"prompt": prompt}, True),
        (
            {"messages": [{"role": "user", "content": {"$from": f"{name}.output.text"}} for name in ("said", "call")]},
            True,
        ),
    ):
        _, steps = make(Policed(rules), flow(steps=[call, said, third | {"input": texts}]))
        policies = {step.body.name: step.policy for step in steps}
        assert (policies["call"], policies["said"]) == (None, None)
        assert (policies["third"] is not None) == is_kept, texts
