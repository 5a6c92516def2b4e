"""What a job asks of the engine: the request of each prompt and choice, where it goes on, and its times."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.policy.output_policy import OutputRules
from headrace.models.engine.reasoning import ReasoningTokens
from headrace.models.engine.requests import (
    CheckpointMismatch,
    CompletionOutput,
    EngineRequest,
    FinishReason,
    StepFailed,
)
from headrace.policy.documents import PolicyDocument
from headrace.policy.outputs import OutputFormat
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy
from headrace.prompts.tokenizer import ApproximateTokenizer, ByteTokenizer
from headrace.store.errors import InvalidRequest
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.metrics.worker_metrics import Served, WorkerMetrics
from headrace.store.payloads.reasoning import ReasoningFormat
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.streams.checkpoints import Checkpoint, ChoiceEnd, ChoiceMark, LogprobRow
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.in_flight import Attempt, AttemptId, ChoiceId
from headrace.workers.runs.outcome import Retry
from headrace.workers.tasks.generate import Generating, sample_seed, seeded
from headrace.workers.tasks.reasoning_tokens import reasoning_tokens
from tests.features.flows.tools.test_tool_caller import value_of
from tests.workers.runs.test_outcome import CLAIM, completion

ANY: Any = None
FIRST = replace(CLAIM, epoch=1, attempt=1, queued_s=2.0)
SAMPLING = {"max_tokens": 8, "temperature": 0.5}


class Engine:
    """Takes the requests of an attempt and answers as a test says; notes frames and where an attempt goes on."""

    def __init__(self, known: Checkpoint | None = None) -> None:
        self.known = known or Checkpoint()
        self.requests: list[EngineRequest] = []
        self.sizes: list[tuple[int, int]] = []
        self.frames: list[tuple[Any, ...]] = []
        self.ages: list[float] = []
        self.answer: Callable[[EngineRequest], CompletionOutput] = lambda _request: completion(FinishReason.STOP)
        self.is_mismatch = False

    def run(self, _attempt: Attempt, request: EngineRequest, *, num_prompt: int, max_tokens: int) -> CompletionOutput:
        self.requests.append(request)
        self.sizes.append((num_prompt, max_tokens))
        return self.answer(request)

    def run_group(
        self, _attempt: Attempt, requests: Sequence[EngineRequest], *, num_prompt: int, max_tokens: int, **how: Any
    ) -> dict[int, CompletionOutput]:
        self.sizes.append((num_prompt, max_tokens))
        results = {}
        for position, request in enumerate(requests):
            self.requests.append(request)
            results[position] = self.answer(request)
            how["on_result"](position, results[position])
            if how["is_last"](results[position]):
                break
        return results

    def check(self, _request: EngineRequest) -> None:
        if self.is_mismatch:
            raise CheckpointMismatch("the tokens make another text")

    def checkpoint(self, _claim: Claim, age_s: float) -> Checkpoint:
        self.ages.append(age_s)
        return self.known

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.frames.append((name, *given))


def generating(engine: Engine, metrics: WorkerMetrics | None = None, **changes: Any) -> Generating:
    given: Any = engine
    values: dict[str, Any] = {
        "in_flight": ANY,
        "engine": ANY,
        "admission": ANY,
        "frames": given,
        "recovery": given,
        "tokenizer": ByteTokenizer(),
        "guards": ANY,
        "context_window": 64,
        "metrics": metrics or WorkerMetrics(Served("fake", "1", "generate")),
        "spans": AttemptSpans(),
        "client": given,
        "clock": lambda: 103.0,
    }
    return Generating(**values | changes)


def attempt(claim: Claim = FIRST, **payload: Any) -> Attempt:
    given = {"input": {"prompt": "hello"}, "sampling": SAMPLING, **payload}
    return Attempt(replace(claim, payload=given), 100.0, 150.0, 100.5)


def test_a_job_is_one_request_of_its_tenant_and_class() -> None:
    engine = Engine()
    payload = {"sampling": {**SAMPLING, "bad_words": ["ab"], "seed": 5}}
    payload["reasoning"] = {"opening": "<t>", "closing": "</t>", "direct": "", "is_open": True, "max_tokens": 3}
    found = generating(engine).compute(attempt(**payload))
    assert isinstance(found, Finish)
    (request,) = engine.requests
    assert request == EngineRequest(
        AttemptId("job_1", 1),
        tuple(b"hello"),
        request.sampling,
        150.0,
        cache_salt="ten_1",
        class_rank=1,
        banned=request.banned,
        reasoning=ReasoningTokens(tuple(b"<t>"), tuple(b"</t>"), (), is_open=True, budget=3),
    )
    assert tuple(b"ab") in request.banned
    assert (request.sampling.max_tokens, request.sampling.seed, request.sampling.temperature) == (8, 5, 0.5)
    assert (engine.sizes, engine.frames, found.lineage) == ([(5, 8)], [], ((1, 0),))
    usage = found.usage or {}
    assert (usage["queue_ms"], usage["first_token_ms"], usage["attempt_first_token_ms"]) == (2000.0, 6000.0, 4000.0)


def test_only_the_own_engine_gets_a_seed_and_a_chat_server_its_messages() -> None:
    own, server, chat = Engine(), Engine(), Engine()
    generating(own).compute(attempt())
    generating(server, kind=EngineKind.VLLM).compute(attempt())
    suspect = replace(FIRST, is_suspect=True, crashes=1)

    def fields(tenant_id: str, source: Any) -> dict[str, object]:
        return {"tenant": tenant_id, "prompt": source.prompt}

    payload = {"sampling": {**SAMPLING, "bad_words": ["ab"]}, "reasoning": {"opening": "<t>", "closing": "</t>"}}
    generating(chat, kind=EngineKind.OPENAI, chat_fields=fields).compute(attempt(suspect, **payload))
    assert own.requests[0].sampling.seed == seeded(Sampling(), "job_1").seed
    assert server.requests[0].sampling.seed is None
    (request,) = chat.requests
    assert request.messages == {"tenant": "ten_1", "prompt": "hello"}
    assert (request.banned, request.reasoning, request.pause_after, request.sampling.seed) == ((), None, None, None)
    generating(own).compute(attempt(suspect))
    generating(own).compute(attempt(replace(suspect, crashes=2)))
    assert [one.pause_after for one in own.requests] == [None, 8, None]


def test_an_answer_has_the_room_that_the_prompt_leaves() -> None:
    engine = Engine()
    long = {"input": {"prompt": "x" * 60}, "sampling": {"temperature": 0}}
    generating(engine).compute(attempt(**long))
    assert engine.requests[0].sampling.max_tokens == 4
    with pytest.raises(InvalidRequest) as refused:
        generating(engine).compute(attempt(input={"prompt": "x" * 60}))
    assert refused.value.code == "context_length_exceeded"


def test_marks_of_reasoning_are_tokens_without_those_that_begin_a_prompt() -> None:
    tokenizer: Any = SimpleNamespace(encode=lambda text, *, add_special: [0] * add_special + [*text.encode()])
    marks = ReasoningFormat(opening="a", closing="b", direct="c", is_forced=True, max_tokens=9)
    expected = ReasoningTokens((97,), (98,), (99,), is_open=False, is_forced=True, budget=9)
    assert reasoning_tokens(marks, tokenizer) == expected


def test_only_a_chat_server_knows_whether_a_prompt_fits() -> None:
    chat = Engine()
    one = generating(chat, tokenizer=ApproximateTokenizer(), kind=EngineKind.OPENAI, chat_fields=lambda *_: {})
    one.compute(attempt(input={"prompt": "word " * 500}))
    assert [(len(request.prompt), request.sampling.max_tokens) for request in chat.requests] == [(56, 8)]


@pytest.mark.parametrize("choices", [{}, {"n": 2}])
@pytest.mark.parametrize(("action", "changes_text"), [("mask", True), ("flag", False)])
def test_what_a_policy_may_change_is_filtered_in_the_stream_and_never_continued(
    choices: dict[str, int], action: str, changes_text: bool
) -> None:
    rule = {"id": "words", "deny": {"phrases": ["mill"]}, "action": action, "stage": "output"}
    policy = Policy(PolicyDocument.model_validate({"rules": [rule]}))
    guard = OutputRules(policy, PlaceholderMap(), OutputFormat.TEXT)
    guards = SimpleNamespace(output=lambda *_: guard)
    engine = Engine()
    later = attempt(LATER, policy={"model": "*", "version": 1}, **choices)
    generating(engine, guards=guards).compute(later)
    filtered = [attempt_id for name, attempt_id, *_ in engine.frames if name == "put_filter"]
    assert (filtered, bool(engine.ages)) == ([later.id] if changes_text else [], not changes_text)


def test_each_prompt_has_its_choices_with_seeds_of_their_own() -> None:
    engine = Engine()
    found = generating(engine).compute(attempt(input={"prompts": ["one", "three"]}, n=2))
    assert isinstance(found, Finish)
    assert [(one.id, bytes(one.prompt), one.group) for one in engine.requests] == [
        (ChoiceId("job_1", 1, number), prompt, AttemptId("job_1", 1))
        for number, prompt in enumerate((b"one", b"one", b"three", b"three"))
    ]
    seeds = [seeded(Sampling(), "job_1", number).seed for number in (0, 1)]
    assert [one.sampling.seed for one in engine.requests] == [
        sample_seed(seed, sample) for seed in seeds for sample in (0, 1)
    ]
    assert engine.sizes == [(8, 32)], "each prompt counts once, the tokens of all choices"
    ends = [("put_choice_end", one.id, ChoiceEnd("stop", 5, 3)) for one in engine.requests]
    assert [frame for frame in engine.frames if frame[0] == "put_choice_end"] == ends


def test_after_the_first_unfinished_choice_the_others_have_its_reason() -> None:
    engine = Engine()
    reasons = iter([FinishReason.STOP, FinishReason.DEADLINE])
    engine.answer = lambda _request: completion(next(reasons))
    found = generating(engine).compute(attempt(n=4))
    assert isinstance(found, Finish)
    choices = (found.output or {})["choices"]
    assert [one["finish_reason"] for one in choices] == ["stop", "deadline", "deadline", "deadline"]
    assert len(engine.requests) == 2
    assert (found.error or {})["code"] == "deadline_exceeded"


ROW = (LogprobRow(5, -1.0),)
KNOWN = Checkpoint(("Hel", "lo"), ((1, 2), (3,)), ((1, 0),), ((*ROW, *ROW), ROW), first_token_s=1.25)
LATER = replace(FIRST, epoch=3, attempt=2)


def test_a_later_attempt_goes_on_behind_what_was_shown() -> None:
    engine = Engine(KNOWN)
    generating(engine).compute(attempt(LATER))
    (request,) = engine.requests
    assert (request.emitted, request.emitted_deltas, len(request.emitted_logprobs)) == ((1, 2, 3), ("Hel", "lo"), 3)
    assert engine.frames == [("put_start", AttemptId("job_1", 3), KNOWN.continued_by(3))]
    assert engine.ages == [2.0 + 3.0], "since its acceptance"


@pytest.mark.parametrize("why", ["mismatch", "echo", "first"])
def test_an_attempt_that_cannot_go_on_begins_anew(why: str) -> None:
    engine = Engine(KNOWN)
    engine.is_mismatch = why == "mismatch"
    sampling = {**SAMPLING, "echo": True, "logprobs": 0} if why == "echo" else SAMPLING
    generating(engine).compute(attempt(FIRST if why == "first" else LATER, sampling=sampling))
    (request,) = engine.requests
    assert (request.emitted, request.emitted_deltas) == ((), ())
    anew = [("put_start", AttemptId("job_1", 3), Checkpoint(lineage=((3, 0),)))]
    assert engine.frames == ([] if why == "first" else anew)
    assert (engine.ages == []) == (why != "mismatch")


def test_a_choice_that_has_ended_is_not_run_again() -> None:
    end = ChoiceEnd("length", 50, 40)
    marks = (ChoiceMark(0), ChoiceMark(1), ChoiceMark(0, end))
    engine = Engine(Checkpoint(("a", "b", ""), ((1,), (2,), ()), ((1, 0),), marks=marks))
    found = generating(engine).compute(attempt(LATER, n=2))
    assert isinstance(found, Finish)
    (request,) = engine.requests
    assert (request.id, request.emitted, request.emitted_deltas) == (ChoiceId("job_1", 3, 1), (2,), ("b",))
    first, second = (found.output or {})["choices"]
    assert (first["text"], first["finish_reason"], second["finish_reason"]) == ("a", "length", "stop")
    usage = found.usage or {}
    assert (usage["input_tokens"], usage["output_tokens"]) == (50, 43)


def test_the_times_of_an_attempt_are_counted_and_the_wait_of_a_job_once() -> None:
    metrics, engine = WorkerMetrics(Served("fake", "1", "generate")), Engine()
    one = generating(engine, metrics)
    for claim in (FIRST, LATER):
        one.compute(attempt(claim))
    engine.answer = lambda _request: replace(completion(FinishReason.STOP), first_token_s=None)
    one.compute(attempt(LATER))
    names = ("queue", "prefill", "decode")
    counts = [value_of(metrics, f"headrace_{name}_seconds_count", **{"class": "standard"}) for name in names]
    sums = [value_of(metrics, f"headrace_{name}_seconds_sum", **{"class": "standard"}) for name in names]
    assert (counts, sums) == ([1, 2, 2], [2.0 + 3.0 + 0.25, 1.5, 2.0])


def test_an_error_keeps_what_the_choices_have_shown() -> None:
    engine = Engine(replace(KNOWN, marks=(ChoiceMark(0), ChoiceMark(1)), logprobs=()))

    def fails(_request: EngineRequest) -> CompletionOutput:
        raise StepFailed("a step")

    engine.answer = fails
    retry = generating(engine).compute(attempt(LATER, n=2))
    assert isinstance(retry, Retry)
    assert retry.checkpoint is not None
    assert (retry.code, retry.checkpoint.deltas) == ("worker_lost", ("Hel", "lo"))
    fresh = Engine()
    fresh.answer = fails
    nothing = generating(fresh).compute(attempt(n=2))
    assert isinstance(nothing, Retry)
    assert nothing.checkpoint is None
