"""The outcome of a job by its result in the engine: states, retries, probation; and the request of a payload."""

import math
from dataclasses import replace

import pytest

from headrace.features.policy.output_policy import OutputRules
from headrace.models.engine.requests import (
    CompletionOutput,
    EmittedOutput,
    EngineStopped,
    FinishReason,
    Grammar,
    NumericalError,
    OutOfMemory,
    SampledLogprobs,
    StepFailed,
)
from headrace.models.external.upstream import UpstreamBusy, UpstreamLost
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.prompts.tool_calls import call_id
from headrace.store.errors import CannotOpen, InvalidRequest
from headrace.store.jobs.claims import Claim, Finish, Release
from headrace.store.payloads.job_payload import read_payload
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.payloads.sampling_params import GrammarKind, GrammarSpec, Sampling
from headrace.store.schema.job_states import JobState
from headrace.store.streams import checkpoints as stored
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.tasks.generate import GenerateInput, GeneratePayload, PromptEcho, ToolStyle
from headrace.workers.runs import outcome
from headrace.workers.runs.logprobs import emitted
from headrace.workers.runs.outcome import Retry
from headrace.workers.tasks.generate import sampling_params
from tests.refusals import Naming

CLAIM = Claim(
    job_id="job_1",
    tenant_id="ten_1",
    class_rank=1,
    epoch=4,
    attempt=2,
    model="fake",
    model_version=1,
    payload={},
    input_tokens=3,
    remaining_s=None,
    queued_s=0.5,
    max_attempts=3,
)


PAYLOAD = GeneratePayload(input=GenerateInput(prompt="x"), sampling=Sampling())


def completion(reason: FinishReason) -> CompletionOutput:
    return CompletionOutput(
        request_id="job_1/4",
        text="the mill",
        token_ids=(1, 2, 3),
        deltas=("the ", "mill"),
        finish_reason=reason,
        num_prompt_tokens=5,
        queued_s=0.25,
        first_token_s=1.0,
        total_s=2.0,
        num_cached_tokens=4,
    )


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [
        (FinishReason.STOP, JobState.SUCCEEDED, None),
        (FinishReason.LENGTH, JobState.SUCCEEDED, None),
        (FinishReason.CANCELLED, JobState.CANCELLED, None),
        (FinishReason.DEADLINE, JobState.EXPIRED, "deadline_exceeded"),
    ],
)
def test_every_completion_has_a_state_and_keeps_its_text(reason: FinishReason, state: JobState, code: str) -> None:
    finish = outcome.completed(
        CLAIM, PAYLOAD, completion(reason), 0.125, Checkpoint(lineage=((4, 0),)), ByteTokenizer()
    )
    assert isinstance(finish, Finish)
    assert (finish.state, finish.epoch, finish.deltas, finish.lineage) == (state, 4, ("the ", "mill"), ((4, 0),))
    assert finish.output == {"text": "the mill", "finish_reason": reason.value}
    assert (finish.error or {}).get("code") == code
    stopped = replace(completion(reason), stop_text="END")
    finish = outcome.completed(CLAIM, PAYLOAD, stopped, 0.125, Checkpoint(lineage=((4, 0),)), ByteTokenizer())
    assert isinstance(finish, Finish)
    assert (finish.output or {})["stop_text"] == "END"
    assert finish.usage == {
        "input_tokens": 5,
        "output_tokens": 3,
        "cached_tokens": 4,
        "reasoning_tokens": 0,
        "queue_ms": 500.0,
        "first_token_ms": 1625.0,
        "attempt_first_token_ms": 1125.0,
        "compute_ms": 2000.0,
    }


START = Checkpoint(("the ",), ((1,),), ((2, 0), (4, 1)))


@pytest.mark.parametrize(
    ("reason", "said"),
    [(FinishReason.STOP, "tool_calls"), (FinishReason.LENGTH, "length"), (FinishReason.CANCELLED, "cancelled")],
)
def test_calls_are_told_apart_from_content_and_the_text_is_kept(reason: FinishReason, said: str) -> None:
    asked = GenerateInput.model_validate(
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "turn"}}]}
    )
    payload = GeneratePayload(input=asked, sampling=Sampling(), tool_style=ToolStyle.JSON)
    text = 'The mill.\n{"name": "turn", "arguments": {"by": 1}}'
    finish = outcome.completed(CLAIM, payload, replace(completion(reason), text=text), 0.125, START, ByteTokenizer())
    assert isinstance(finish, Finish)
    call = {"id": call_id("job_1", 0), "type": "function", "function": {"name": "turn", "arguments": '{"by": 1}'}}
    assert finish.output == {"text": text, "finish_reason": said, "content": "The mill.", "tool_calls": (call,)}
    alone = outcome.answer(payload, "job_1", text.partition("\n")[2], reason)
    assert (alone.content, len(alone.tool_calls or ())) == (None, 1)
    tagged = payload.model_copy(update={"tool_style": ToolStyle.HERMES})
    cut = outcome.answer(tagged, "job_1", 'The mill.\n<tool_call>{"na', reason)
    assert (cut.tool_calls, cut.content) == (None, None if reason is FinishReason.STOP else "The mill.")


def test_reasoning_is_told_apart_from_content() -> None:
    payload = PAYLOAD.model_copy(update={"reasoning": ReasoningFormat(opening="<think>", closing="</think>")})
    found = outcome.answer(payload, "job_1", "<think>hm</think>yes", FinishReason.STOP)
    assert (found.text, found.content, found.reasoning) == ("<think>hm</think>yes", "yes", "hm")
    plain = outcome.answer(payload, "job_1", "yes", FinishReason.STOP)
    assert (plain.text, plain.content, plain.reasoning) == ("yes", None, None)


@pytest.mark.parametrize(("known_s", "told_ms"), [(0.25, 250.0), (None, None)])
def test_a_completion_of_several_attempts_has_the_first_token_of_the_one_that_began_it(
    known_s: float | None, told_ms: float | None
) -> None:
    start = replace(START, first_token_s=known_s)
    finish = outcome.completed(CLAIM, PAYLOAD, completion(FinishReason.STOP), 0.125, start, ByteTokenizer())
    assert isinstance(finish, Finish)
    used = finish.usage or {}
    assert finish.lineage == ((2, 0), (4, 1))
    assert (used["first_token_ms"], used["attempt_first_token_ms"]) == (told_ms, 1125.0)


def test_an_attempt_that_is_given_back_hands_on_when_the_first_token_came() -> None:
    failed = StepFailed("a step")
    failed.progress = EmittedOutput(("the ",), ((1,),), first_token_s=1.0)
    handed_back = replace(completion(FinishReason.HANDED_BACK), delta_token_ids=((1,), (2, 3)))
    begun = [
        outcome.completed(CLAIM, PAYLOAD, handed_back, 0.125, Checkpoint(), ByteTokenizer()),
        outcome.stopped(CLAIM, failed, 0.125, Checkpoint()),
    ]
    for retry in begun:
        assert isinstance(retry, Retry)
        assert (retry.first_token_ms, retry.checkpoint and retry.checkpoint.first_token_s) == (1125.0, 1.625)
    continued = outcome.stopped(CLAIM, failed, 0.125, replace(START, first_token_s=0.25))
    assert isinstance(continued, Retry)
    assert (continued.first_token_ms, continued.checkpoint and continued.checkpoint.first_token_s) == (1125.0, 0.25)


def test_logprobs_are_kept_by_delta_and_spelled_for_the_whole_text() -> None:
    alternatives = ((0x68, 0x6F), (-0.25, -2.00000049))
    found = [SampledLogprobs(-0.25, *alternatives), SampledLogprobs(-math.inf), SampledLogprobs(-0.5)]
    whole = replace(
        completion(FinishReason.STOP),
        text="h\ufffd",
        token_ids=(0x68, 0xC3, 256),
        deltas=("h", "\ufffd"),
        delta_token_ids=((0x68,), (0xC3, 256)),
        logprobs=tuple(found),
    )
    finish = outcome.completed(CLAIM, PAYLOAD, whole, 0.125, START, ByteTokenizer())
    assert isinstance(finish, Finish)
    first, half, end = (
        stored.LogprobRow(0x68, -0.25, ((0x68, -0.25), (0x6F, -2.0))),
        stored.LogprobRow(0xC3, -9999.0),
        stored.LogprobRow(256, -0.5),
    )
    assert finish.logprobs == ((first,), (half, end))
    assert emitted(finish.logprobs)[0] == SampledLogprobs(-0.25, (0x68, 0x6F), (-0.25, -2.0))
    top = [{"token": "h", "logprob": -0.25, "bytes": (0x68,)}, {"token": "o", "logprob": -2.0, "bytes": (0x6F,)}]
    assert (finish.output or {})["logprobs"] == (
        {**top[0], "top_logprobs": tuple(top)},
        {"token": "\ufffd", "logprob": -9999.0, "bytes": (0xC3,), "top_logprobs": ()},
    )


@pytest.mark.parametrize(
    ("is_suspect", "crashes", "num_new", "cleared"),
    [(False, 0, 9, False), (True, 1, 8, True), (True, 1, 7, False), (True, 2, 9, False), (False, 1, 9, False)],
)
def test_what_is_handed_back_is_not_charged_and_may_have_stood_its_probation(
    is_suspect: bool, crashes: int, num_new: int, cleared: bool
) -> None:
    claim = replace(CLAIM, is_suspect=is_suspect, crashes=crashes)
    tokens = tuple(range(1 + num_new))
    whole = replace(completion(FinishReason.HANDED_BACK), token_ids=tokens, delta_token_ids=((0,), (1, 2)))
    retry = outcome.completed(claim, PAYLOAD, whole, 0.125, START, ByteTokenizer())
    assert isinstance(retry, Retry)
    handed_on = Checkpoint(("the ", "mill"), ((0,), (1, 2)), START.lineage)
    assert retry.release(claim) == Release(
        "job_1", 4, cleared=cleared, checkpoint=handed_on, tenant_id=claim.tenant_id, first_token_ms=1125.0
    )


def test_errors_end_a_job_or_let_it_run_again() -> None:
    failed, numerical = StepFailed("a step"), NumericalError("not finite")
    failed.progress = numerical.progress = EmittedOutput(("the ",), ((1,),))
    retry = outcome.refused(CLAIM, failed, outcome.shown(failed.progress, START, 1.0))
    assert retry == Retry("worker_lost", "a step", checkpoint=START)
    finish = outcome.refused(CLAIM, numerical)
    assert isinstance(finish, Finish)
    assert (finish.state, (finish.error or {})["code"]) == (JobState.FAILED, "numerical_error")


def test_a_dead_engine_is_charged_to_those_who_were_inside() -> None:
    inside, outside = EngineStopped("gone"), EngineStopped("gone")
    inside.progress = EmittedOutput()
    verdicts = [outcome.refused(replace(CLAIM, attempt=3), error) for error in (inside, outside)]
    assert verdicts == [
        Retry("worker_lost", "gone", charge=True, crashed=True),
        Retry("worker_lost", "gone", charge=False, crashed=False),
    ]


def test_a_lost_server_counts_as_a_crash_only_for_a_job_that_lost_many() -> None:
    lost = UpstreamLost("gone")
    lost.progress = EmittedOutput(("Hel",), ((1,),))
    verdicts = [
        outcome.refused(
            replace(CLAIM, epoch=5 + CLAIM.attempt + num_free, restarts_after=5),
            error,
            outcome.shown(error.progress, START, 1.0),
        )
        for error, num_free in (
            (lost, outcome.FREE_LOSSES - 1),
            (lost, outcome.FREE_LOSSES),
            (UpstreamBusy("later"), 1000),
        )
    ]
    kept = Checkpoint(("Hel",), ((1,),), START.lineage)
    assert verdicts == [
        Retry("worker_lost", "gone", charge=False, checkpoint=kept),
        Retry("worker_lost", "gone", charge=True, crashed=True, checkpoint=kept),
        Retry("worker_lost", "later", charge=False),
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(StepFailed("gone"), "max_attempts_exceeded"), (OutOfMemory("full"), "out_of_memory")]
)
def test_the_last_attempt_fails_for_good(error: StepFailed, code: str) -> None:
    last = outcome.refused(replace(CLAIM, attempt=3), error)
    assert isinstance(last, Finish)
    assert (last.error or {})["code"] == code


def test_sampling_reaches_the_engine_whole() -> None:
    sampling = Sampling(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        seed=11,
        stop=("END",),
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logprobs=3,
        grammar=GrammarSpec(kind=GrammarKind.REGEX, text="[0-9]+"),
    )
    params = sampling_params(sampling, 99)
    expected = sampling.model_dump() | {"max_tokens": 99, "grammar": Grammar("regex", "[0-9]+")}
    assert sampling_params(Sampling(ignore_eos=True), 1).ignore_eos
    assert {name: getattr(params, name) for name in expected} == expected


def test_an_unreadable_payload_names_the_field_and_quotes_nothing() -> None:
    payload = {"input": {"prompt": "secret words"}, "sampling": {"temperature": "secret heat"}}
    claim = replace(CLAIM, payload=payload)
    with pytest.raises(InvalidRequest, match=r"sampling\.temperature") as caught:
        read_payload(GeneratePayload, claim.payload)
    assert caught.value.code == "invalid_payload"
    assert "secret" not in caught.value.message
    assert caught.value.__cause__ is None


def test_a_job_waits_for_a_worker_that_has_the_key_of_a_value() -> None:
    last = replace(CLAIM, attempt=3)
    given_back = outcome.refused(last, CannotOpen("no key"))
    assert given_back == Retry("encryption_key_missing", "no key", charge=False, later=True)
    assert given_back.release(last) == Release("job_1", 4, tenant_id="ten_1", later=True)
    changed = outcome.refused(CLAIM, CannotOpen("changed", code="encryption_value_invalid"))
    assert isinstance(changed, Finish)
    assert (changed.error or {})["code"] == "encryption_value_invalid"


def test_the_ends_of_a_job_are_these() -> None:
    """Every field: a forgotten one would be a default."""
    plain = {"job_id": "job_1", "epoch": 4, "output": None, "usage": None, "deltas": (), "tenant_id": "ten_1"}
    error = {"code": "broken", "message": "it broke", "retryable": False, "attempt": 2}
    assert outcome.failed(CLAIM, "broken", "it broke") == Finish(**plain, state=JobState.FAILED, error=error)
    assert outcome.cancelled(CLAIM) == Finish(**plain, state=JobState.CANCELLED, error=None)
    used = {"output_tokens": 3}
    blocked = outcome.blocked(CLAIM, "no-mill", used)
    message = Naming("no-mill")
    told = {"code": "policy_blocked_output", "message": message, "retryable": False, "attempt": 2, "rule": "no-mill"}
    assert blocked == Finish(**{**plain, "usage": used}, state=JobState.FAILED, error=told)
    late = Naming("deadline")
    assert outcome.expiry_error(CLAIM) == {**error, "code": "deadline_exceeded", "message": late}


def test_the_last_attempt_says_how_many_there_were_only_if_the_error_is_not_the_jobs_own() -> None:
    last = replace(CLAIM, attempt=3)
    found = [outcome.again(last, code, "it broke") for code in ("worker_lost", "internal_error", "out_of_memory")]
    many = ("max_attempts_exceeded", "attempt 3 of 3: it broke")
    assert [((one.error or {})["code"], (one.error or {})["message"]) for one in found if isinstance(one, Finish)] == [
        many,
        many,
        ("out_of_memory", "it broke"),
    ]
    kept = Checkpoint(("x",), ((1,),))
    assert outcome.again(CLAIM, "worker_lost", "it broke", kept) == Retry("worker_lost", "it broke", checkpoint=kept)


def test_a_lost_server_at_the_last_attempt_is_charged_or_free() -> None:
    last = replace(CLAIM, attempt=3, epoch=3)
    assert outcome.refused(last, UpstreamLost("gone")) == Retry("worker_lost", "gone", charge=False)
    many = replace(last, epoch=3 + outcome.FREE_LOSSES)
    ended = outcome.refused(many, UpstreamLost("gone"))
    assert isinstance(ended, Finish)
    assert (ended.error or {})["code"] == "max_attempts_exceeded"
    assert outcome.refused(many, UpstreamBusy("later")) == Retry("worker_lost", "later", charge=False)


def test_a_retry_goes_back_with_its_flow_and_all_its_marks() -> None:
    kept = Checkpoint(("x",), ((1,),))
    retry = Retry("worker_lost", "gone", charge=True, crashed=True, cleared=True, checkpoint=kept, first_token_ms=4.0)
    assert retry.release(replace(CLAIM, parent_id="job_0")) == Release(
        "job_1", 4, True, True, True, kept, "ten_1", first_token_ms=4.0, parent_id="job_0"
    )


def test_what_was_shown_is_kept_with_its_time_and_nothing_is_nothing() -> None:
    assert [outcome.shown(one, START, 1.0) for one in (None, EmittedOutput())] == [None, None]
    progress = EmittedOutput(("a",), ((1,),), (SampledLogprobs(-1.0),), 0.5)
    found = outcome.shown(progress, Checkpoint(lineage=((4, 0),)), 2.0)
    assert found == Checkpoint(("a",), ((1,),), ((4, 0),), ((stored.LogprobRow(1, -1.0),),))
    assert found is not None
    assert found.first_token_s == 2.5
    silent = outcome.shown(replace(progress, first_token_s=None), Checkpoint(), 2.0)
    assert silent is not None
    assert silent.first_token_s is None


def test_logprobs_are_left_out_where_a_policy_may_change_the_text() -> None:
    policy = Policy(
        PolicyDocument.model_validate(
            {"rules": [{"id": "m", "deny": {"phrases": ["zzz"]}, "action": "mask", "stage": "output"}]}
        )
    )
    rules = OutputRules(policy, PlaceholderMap(), OutputFormat.TEXT)
    rows = (SampledLogprobs(-1.0),) * 3
    whole = replace(completion(FinishReason.STOP), logprobs=rows, delta_token_ids=((1,), (2, 3)))
    finish = outcome.completed(CLAIM, PAYLOAD, whole, 0.125, START, ByteTokenizer(), rules, prompt=PromptEcho(text="x"))
    assert isinstance(finish, Finish)
    assert (finish.logprobs, finish.output) == (
        (),
        {"text": "the mill", "finish_reason": "stop", "prompt": {"text": "x"}},
    )
