"""The outcome of several choices by their results in the engine, and the one stream of their deltas: pure values."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from headrace.features.policy.output_policy import OutputRules
from headrace.models.engine.reasoning import ReasoningTokens
from headrace.models.engine.requests import CompletionOutput, Delta, EngineRequest, FinishReason, SamplingParams
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.jobs.claims import Finish
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.schema.job_states import JobState
from headrace.store.streams.checkpoints import Checkpoint, ChoiceEnd, ChoiceMark, LogprobRow
from headrace.store.streams.stream_log import Frame
from headrace.store.tasks.generate import GenerateInput, GeneratePayload, PromptEcho
from headrace.workers.runs import choice_outcome
from headrace.workers.runs.choice_stream import ChoiceStream
from headrace.workers.runs.in_flight import AttemptId, ChoiceId
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.stream_publisher import FrameQueue
from tests.workers.runs.test_outcome import CLAIM, completion
from tests.workers.runs.test_stream_publisher import Gate

TWO_PROMPTS = GeneratePayload(input=GenerateInput(prompts=("x", "y")), n=2, sampling=Sampling())
STOP = ChoiceEnd("stop", 5, 3)
LENGTH = ChoiceEnd("length", 5, 3)
START = Checkpoint(("the ",), ((1,),), ((2, 0), (4, 1)), marks=(ChoiceMark(0),), first_token_s=0.25)
STREAM = Checkpoint(
    ("the ", "a ", "mill", "", "wheel", ""),
    ((1,), (7,), (2,), (3,), (8,), (9,)),
    ((2, 0), (4, 1)),
    (
        (LogprobRow(0x74, -0.5),),
        (LogprobRow(0x61, -1.0),),
        (LogprobRow(0x6D, -0.25),),
        (),
        (LogprobRow(0x77, -2.0),),
        (),
    ),
    (ChoiceMark(0), ChoiceMark(1), ChoiceMark(0), ChoiceMark(0, STOP), ChoiceMark(1), ChoiceMark(1, LENGTH)),
)
ONE_PROMPT = GeneratePayload(input=GenerateInput(prompt="x"), n=2, sampling=Sampling())


def result(reason: FinishReason, **changes: Any) -> CompletionOutput:
    return replace(completion(reason), **changes)


def outcome_of(
    payload: GeneratePayload, completions: Sequence[CompletionOutput], stream: Checkpoint = STREAM, **changes: Any
) -> Finish | Retry:
    values: dict[str, Any] = {"rules": None, "prompts": [None] * len(completions), "start": START} | changes
    return choice_outcome.completed(
        changes.get("claim", CLAIM),
        payload,
        completions,
        0.125,
        values["start"],
        stream,
        ByteTokenizer(),
        values["rules"],
        prompts=values["prompts"],
    )


def test_choices_that_ended_are_one_output_with_one_stream() -> None:
    ended = [
        result(FinishReason.STOP, stop_text="END", total_s=1.0),
        result(FinishReason.LENGTH, first_token_s=0.5, num_cached_tokens=0),
    ]
    echo = PromptEcho(text="x")
    finish = outcome_of(
        ONE_PROMPT, ended, prompts=[echo, None], start=replace(START, deltas=(), token_ids=(), marks=())
    )
    assert isinstance(finish, Finish)
    spelled = [
        {"token": chr(one), "logprob": value, "bytes": (one,), "top_logprobs": ()}
        for one, value in ((0x74, -0.5), (0x6D, -0.25), (0x61, -1.0), (0x77, -2.0))
    ]
    first = {
        "text": "the mill",
        "finish_reason": "stop",
        "logprobs": tuple(spelled[:2]),
        "stop_text": "END",
        "prompt": {"text": "x"},
    }
    second = {"text": "a wheel", "finish_reason": "length", "logprobs": tuple(spelled[2:])}
    assert finish.output == {"text": "the mill", "finish_reason": "stop", "choices": [first, second]}
    assert finish.usage == {
        "input_tokens": 5,
        "output_tokens": 6,
        "cached_tokens": 4,
        "reasoning_tokens": 0,
        "queue_ms": 500.0,
        "first_token_ms": 1125.0,
        "attempt_first_token_ms": 625.0,
        "compute_ms": 2000.0,
    }
    assert (finish.job_id, finish.epoch, finish.tenant_id) == ("job_1", 4, "ten_1")
    assert (finish.state, finish.error, finish.lineage) == (JobState.SUCCEEDED, None, START.lineage)
    assert (finish.deltas, finish.marks, finish.logprobs) == (STREAM.deltas, STREAM.marks, STREAM.logprobs)


def test_each_prompt_counts_once_and_the_tokens_of_all_choices() -> None:
    ended = [
        result(FinishReason.STOP, num_prompt_tokens=size, num_cached_tokens=size // 2, num_reasoning_tokens=1)
        for size in (10, 10, 30, 30)
    ]
    finish = outcome_of(TWO_PROMPTS, ended)
    assert isinstance(finish, Finish)
    used = finish.usage or {}
    assert [used[f"{name}_tokens"] for name in ("input", "output", "cached", "reasoning")] == [40, 12, 20, 4]
    assert (used["first_token_ms"], used["attempt_first_token_ms"]) == (250.0, 1125.0), "of the attempt that began it"


@pytest.mark.parametrize(
    ("reasons", "state", "code"),
    [
        ((FinishReason.STOP, FinishReason.CANCELLED), JobState.CANCELLED, None),
        ((FinishReason.DEADLINE, FinishReason.STOP), JobState.EXPIRED, "deadline_exceeded"),
        ((FinishReason.DEADLINE, FinishReason.CANCELLED), JobState.CANCELLED, None),
    ],
)
def test_a_choice_that_did_not_end_by_itself_ends_the_job(
    reasons: Sequence[FinishReason], state: JobState, code: str | None
) -> None:
    finish = outcome_of(ONE_PROMPT, [result(reason) for reason in reasons])
    assert isinstance(finish, Finish)
    assert (finish.state, (finish.error or {}).get("code")) == (state, code)
    choices = (finish.output or {})["choices"]
    assert [choice["finish_reason"] for choice in choices] == [reason.value for reason in reasons]


@pytest.mark.parametrize(
    ("crashes", "num_new", "cleared"), [(1, 8, True), (1, 7, False), (2, 8, False)], ids=["stood", "short", "again"]
)
def test_choices_that_are_handed_back_keep_their_stream(crashes: int, num_new: int, cleared: bool) -> None:
    claim = replace(CLAIM, is_suspect=True, crashes=crashes)
    given = [
        result(FinishReason.HANDED_BACK, token_ids=tuple(range(1 + num_new - 2)), first_token_s=2.0),
        result(FinishReason.CANCELLED, token_ids=(1, 2), first_token_s=1.0),
    ]
    retry = outcome_of(ONE_PROMPT, given, claim=claim)
    assert retry == Retry(
        "handed_back",
        retry.message,
        charge=False,
        cleared=cleared,
        checkpoint=STREAM,
        first_token_ms=1125.0,
    )
    assert retry.checkpoint is not None
    assert retry.checkpoint.first_token_s == 0.25
    begun = outcome_of(ONE_PROMPT, given, start=Checkpoint())
    assert isinstance(begun, Retry)
    assert begun.checkpoint is not None
    assert begun.checkpoint.first_token_s == 0.5 + 0.125 + 1.0
    silent = outcome_of(
        ONE_PROMPT, [result(FinishReason.HANDED_BACK, first_token_s=None)], Checkpoint(), start=Checkpoint()
    )
    assert isinstance(silent, Retry)
    assert (silent.checkpoint, silent.first_token_ms) == (None, None)


def rules(action: str) -> OutputRules:
    rule = {"id": "no-mill", "deny": {"phrases": ["the mill"]}, "action": action, "stage": "output"}
    return OutputRules(Policy(PolicyDocument.model_validate({"rules": [rule]})), PlaceholderMap(), OutputFormat.TEXT)


def test_a_rule_that_blocks_one_choice_fails_the_job_and_one_that_masks_takes_the_logprobs() -> None:
    ended = [result(FinishReason.STOP), result(FinishReason.LENGTH)]
    failed = outcome_of(ONE_PROMPT, ended, rules=rules("block"))
    assert isinstance(failed, Finish)
    assert (failed.state, failed.output, failed.deltas) == (JobState.FAILED, None, ())
    assert (failed.error or {})["rule"] == "no-mill"
    assert (failed.usage or {})["output_tokens"] == 6
    masked = outcome_of(ONE_PROMPT, ended, rules=rules("mask"))
    assert isinstance(masked, Finish)
    first, second = (masked.output or {})["choices"]
    assert (first["text"], second["text"]) == ("*** ****", "a wheel")
    assert [hit["rule"] for hit in first["policy"]] == ["no-mill"]
    assert ("policy" in second, "logprobs" in first, "logprobs" in second) == (False, False, False)
    assert masked.logprobs == ()
    assert [mark.end for mark in masked.marks if mark.end] == [STOP, LENGTH]
    cut = {name: getattr(STREAM, name)[:-1] for name in ("token_ids", "logprobs", "marks")}
    cut["deltas"] = (*STREAM.deltas[:-2], "the")
    stopped = outcome_of(
        ONE_PROMPT, [ended[0], result(FinishReason.CANCELLED)], replace(STREAM, **cut), rules=rules("mask")
    )
    assert isinstance(stopped, Finish)
    assert (stopped.output or {})["choices"][1]["text"] == "a the", "what was held back of a choice without an end"
    flagged = outcome_of(ONE_PROMPT, ended, rules=rules("flag"))
    assert isinstance(flagged, Finish)
    assert (flagged.deltas, flagged.marks, flagged.logprobs) == (STREAM.deltas, STREAM.marks, STREAM.logprobs)
    assert "policy" in (flagged.output or {})["choices"][0]


REQUEST = EngineRequest(ChoiceId("job_1", 4, 1), (1, 2, 3, 4), SamplingParams(max_tokens=9))


def test_a_choice_that_ended_before_or_never_began_has_its_result() -> None:
    known = Checkpoint(("a ", "b"), ((7,), (8, 9)), ((1, 0),))
    ended = choice_outcome.ended_before(REQUEST, known, ChoiceEnd("length", 40, 30, "END"))
    assert ended == CompletionOutput(
        request_id=REQUEST.id,
        text="a b",
        token_ids=(7, 8, 9),
        deltas=("a ", "b"),
        finish_reason=FinishReason.LENGTH,
        num_prompt_tokens=40,
        queued_s=0.0,
        first_token_s=None,
        total_s=0.0,
        delta_token_ids=((7,), (8, 9)),
        reported_output_tokens=30,
        stop_text="END",
    )
    assert choice_outcome.end_of(ended) == ChoiceEnd("length", 40, 30, "END")
    thinking = replace(REQUEST, reasoning=ReasoningTokens((), (9,), (), is_open=True))
    never = choice_outcome.not_begun(thinking, known, FinishReason.CANCELLED)
    assert (never.finish_reason, never.num_prompt_tokens, never.num_output_tokens) == (FinishReason.CANCELLED, 4, 3)
    assert never.num_reasoning_tokens == 2
    for reason in (FinishReason.HANDED_BACK, FinishReason.CANCELLED, FinishReason.DEADLINE):
        assert choice_outcome.end_of(result(reason)) is None
        assert choice_outcome.unfinished([ended, result(reason)]) is reason
    late = [result(FinishReason.DEADLINE), result(FinishReason.CANCELLED), result(FinishReason.HANDED_BACK)]
    assert choice_outcome.unfinished(late) is FinishReason.HANDED_BACK
    assert choice_outcome.unfinished(late[:2]) is FinishReason.CANCELLED
    assert choice_outcome.unfinished([ended]) is None


def test_a_stream_goes_on_behind_its_start_and_has_logprobs_only_if_there_are_some() -> None:
    stream = ChoiceStream(START)
    row = LogprobRow(5, -1.0)
    given = [
        Frame("job_1", 4, 1, "a ", (5,), logprobs=(row,), mark=ChoiceMark(1)),
        Frame("job_1", 4, 0, "", mark=ChoiceMark(1, STOP)),
    ]
    assert [stream.take(frame).seq for frame in given] == [2, 3]
    whole = stream.checkpoint()
    assert (whole.deltas, whole.token_ids, whole.lineage) == (("the ", "a ", ""), ((1,), (5,), ()), START.lineage)
    assert (whole.logprobs, whole.marks) == (((), (row,), ()), (ChoiceMark(0), ChoiceMark(1), ChoiceMark(1, STOP)))
    assert whole.first_token_s == 0.25, "that of the attempt that began the answer"
    assert ChoiceStream(START).checkpoint().logprobs == ()


def test_choices_are_numbered_together_and_nothing_is_shown_when_their_attempt_is_over() -> None:
    gate = Gate()
    gate.open.set()
    gaps: list[tuple[AttemptId, float]] = []
    now = [100.0]
    queue = FrameQueue(
        gate, on_gap=lambda attempt_id, per_token_s: gaps.append((attempt_id, per_token_s)), clock=lambda: now[0]
    )
    queue.start()
    attempt_id, plain = AttemptId("job_1", 4), AttemptId("job_2", 1)
    queue.put_choices(attempt_id, ChoiceStream(START))
    queue.put_deltas([Delta(ChoiceId("job_1", 4, 1), 1, "a ", (7,)), Delta(ChoiceId("job_1", 4, 0), 2, "mill", (2,))])
    queue.put_choice_end(ChoiceId("job_1", 4, 0), STOP)
    queue.put_deltas([Delta(plain, 1, "x", (1,))])
    now[0] = 103.0
    queue.put_deltas([Delta(ChoiceId("job_1", 4, 1), 2, "b", (8,)), Delta(plain, 2, "yz", (2, 3))])
    now[0] = 104.0
    queue.put_deltas([Delta(plain, 3, "", ())])
    queue.put_end(attempt_id)
    queue.forget(attempt_id)
    queue.put_deltas([Delta(ChoiceId("job_1", 4, 1), 3, "late", (9,))])
    queue.put_end(plain)
    queue.put_deltas([Delta(AttemptId("job_2", 1), 1, "again", (1,))])
    queue.stop(30)
    found = [frame for call in gate.calls for frame in call]
    assert [frame for frame in found if frame.job_id == "job_1"] == [
        Frame("job_1", 4, 2, "a ", (7,), mark=ChoiceMark(1)),
        Frame("job_1", 4, 3, "mill", (2,), mark=ChoiceMark(0)),
        Frame("job_1", 4, 4, "", mark=ChoiceMark(0, STOP)),
        Frame("job_1", 4, 5, "b", (8,), mark=ChoiceMark(1)),
        Frame("job_1", 4, 6, None),
    ]
    assert gaps == [(plain, 1.5), (plain, 1.0)], "choices have none, nor the first piece, nor one behind the end"
    with pytest.raises(TypeError, match="'other'"):
        queue.put_deltas([Delta("other", 1, "x", (1,))])
