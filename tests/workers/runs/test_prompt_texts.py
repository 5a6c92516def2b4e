"""Texts that come to a worker after a job was accepted: passages, results of calls, prompts with their logprobs."""

from dataclasses import replace
from typing import Any

import pytest

from headrace.features.flows.running.passages import cited, is_search
from headrace.features.policy.document_policy import document_texts, policed_texts
from headrace.models.engine.requests import (
    CompletionOutput,
    EngineRequest,
    FinishReason,
    SampledLogprobs,
    SamplingParams,
)
from headrace.policy.documents import PolicyDocument
from headrace.policy.policies import Policy, apply_input
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.errors import InvalidRequest
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.retrieval import FileCitation
from headrace.workers.runs.logprobs import echoed, kept, kept_by_delta
from headrace.workers.runs.output_guard import OF_CALLS, OF_PASSAGES
from tests.workers.runs.test_outcome import completion


def passage(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "file_id": f"file_{name}",
        "filename": name,
        "text": text,
        "score": 0.5,
        "place": {"start": 1, "end": 9},
        **more,
    }


def test_what_several_searches_found_is_cited_by_its_numbers() -> None:
    place = {"start": 1, "end": 9}
    outputs: dict[str, dict[str, Any]] = {
        "answer:2": {"task": "embed", "output": {"passages": [passage("c.md", "c")], "numbered_from": 3}},
        "answer:1": {
            "task": "embed",
            "output": {"passages": [passage("a.md", "a"), passage("b.md", "b")], "numbered_from": 1},
        },
        "other": {"task": "embed", "output": {"passages": [passage("d.md", "d")]}},
        "call": {"task": "call_tool", "output": {"text": "x", "numbered_from": 1}},
    }
    assert cited(outputs) == tuple(
        FileCitation.model_validate(
            {"index": number, "file_id": f"file_{name}", "filename": name, "score": 0.5, "place": place}
        )
        for number, name in ((1, "a.md"), (2, "b.md"), (3, "c.md"))
    )
    assert [is_search(outputs[name]) for name in outputs] == [True, True, False, False]
    assert cited({"other": outputs["other"]}) is None


def policy(*rules: dict[str, Any]) -> Policy:
    return Policy(PolicyDocument.model_validate({"rules": [{"stage": "input", **rule} for rule in rules]}))


MAIL = {"id": "mail", "kinds": ["email"], "action": "redact"}


def test_documents_are_read_as_the_policy_lets_them() -> None:
    assert document_texts(policy(MAIL), ["ask ann@example.com", "no"], "this file") == ("ask <EMAIL_1>", "no")
    with pytest.raises(InvalidRequest) as blocked:
        document_texts(policy({**MAIL, "action": "block"}), ["no", "ask ann@example.com"], "this file")
    assert (blocked.value.code, "rule mail" in blocked.value.message) == ("policy_blocked_input", True)
    with pytest.raises(InvalidRequest) as named:
        document_texts(policy(MAIL, {"id": "who", "kinds": ["person"], "action": "redact"}), ["x"], "this file")
    assert (named.value.code, "names" in named.value.message) == ("policy_blocked_input", True)


def test_values_of_the_input_keep_their_placeholders_and_new_ones_have_numbers_of_their_own() -> None:
    pinned = PinnedPolicy(model="*", version=1, counts={"EMAIL": 3})
    texts = ["ask ann@example.com", "or bob@example.com and ann@example.com"]
    for after in (OF_CALLS, OF_PASSAGES):
        first, second = f"<EMAIL_{after + 1}>", f"<EMAIL_{after + 2}>"
        done = policed_texts(policy(MAIL), pinned, texts, "it", after=after)
        assert done == (f"ask {first}", f"or {second} and {first}")
    assert (OF_CALLS, OF_PASSAGES) == (100_000, 200_000)
    known = apply_input(policy(MAIL), ["ann@example.com"]).vault.model_dump()
    pinned = PinnedPolicy(model="*", version=1, vault=known)
    done = policed_texts(policy(MAIL), pinned, texts, "it", after=OF_CALLS)
    assert done == ("ask <EMAIL_1>", f"or <EMAIL_{OF_CALLS + 1}> and <EMAIL_1>")


REQUEST = EngineRequest("r", (0x68, 0x6F, 0xC3), SamplingParams(4, logprobs=1, echo=True))
SCORED = (SampledLogprobs(-0.5, (0x6F,), (-0.25,)), SampledLogprobs(-2.0000004))


def scored(**changes: Any) -> CompletionOutput:
    return replace(completion(FinishReason.STOP), **changes)


def test_a_prompt_is_echoed_with_the_logprobs_of_all_tokens_but_the_first() -> None:
    found = echoed(ByteTokenizer(), REQUEST, scored(prompt_logprobs=SCORED))
    assert found is not None
    top = {"token": "o", "logprob": -0.25, "bytes": (0x6F,)}
    assert found.model_dump(exclude_none=True) == {
        "text": "ho\ufffd",
        "tokens": (
            {"token": "h", "bytes": (0x68,), "top_logprobs": ()},
            {"token": "o", "bytes": (0x6F,), "logprob": -0.5, "top_logprobs": (top,)},
            {"token": "\ufffd", "bytes": (0xC3,), "logprob": -2.0, "top_logprobs": ()},
        ),
    }
    cancelled = echoed(ByteTokenizer(), REQUEST, scored(prompt_logprobs=SCORED[:1]))
    plain = echoed(ByteTokenizer(), replace(REQUEST, sampling=SamplingParams(4, echo=True)), scored())
    assert [one and one.model_dump(exclude_none=True) for one in (cancelled, plain)] == [{"text": "ho\ufffd"}] * 2
    assert echoed(ByteTokenizer(), replace(REQUEST, sampling=SamplingParams(4, logprobs=1)), scored()) is None


def test_logprobs_of_tokens_without_a_text_are_left_out() -> None:
    rows = [SampledLogprobs(-1.0 * number) for number in range(1, 5)]
    by_delta = kept_by_delta([(1,), (2, 3)], rows)
    assert [[(row.token_id, row.logprob) for row in group] for group in by_delta] == [
        [(1, -1.0)],
        [(2, -2.0), (3, -3.0)],
    ]
    assert kept_by_delta([(1,)], ()) == ()
    with pytest.raises(ValueError, match="shorter"):
        kept([1, 2], rows[:1])
