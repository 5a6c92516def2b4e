"""The counters of the engines and the statistics of each request, with a clock that stands still."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from math import inf
from threading import Event
from typing import Any

import pytest

from headrace.models.engine.batching_engine import Outbox, failure_of
from headrace.models.engine.call_engine import CallConfig, CallEngine
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CallTimedOut,
    CompletionOutput,
    Delta,
    EmittedOutput,
    EncodeOutput,
    EncodeRequest,
    EncodeRow,
    EngineRequest,
    FinishReason,
    RequestInvalid,
    RequestTooLong,
    SampledLogprobs,
    SamplingParams,
    StepFailed,
)
from headrace.models.engine.runner import MAX_PASSES, Sampled
from headrace.models.engine.scheduling.scheduler import FEWEST
from headrace.models.fakes.fake import EOS, FakeRunner
from headrace.models.fakes.fake_encoder import FakeEncoder, fake_vector
from tests.models.engine.rig import WAIT_S, Bytes, Clock, Late, Watched, ask, seq, step, step_until_idle
from tests.workers.engine_stub import IDLE

NOTHING = replace(IDLE, free_blocks=0, total_blocks=0, max_slots=0)


def engine_of(runner: FakeRunner, deltas: list[Delta] | None = None, **config: Any) -> LLMEngine:
    shown: list[Delta] = [] if deltas is None else deltas
    return LLMEngine(runner, Bytes, EngineConfig(**config), on_deltas=shown.extend, clock=config_clock)


config_clock = Clock(10.0)


@pytest.fixture(autouse=True)
def _clock() -> None:
    config_clock.now = 10.0


def test_an_engine_says_what_it_has_done_and_what_waits() -> None:
    runner = Watched(num_blocks=10, spare_tokens=0)
    engine = engine_of(runner, max_slots=2, step_tokens=8)
    config_clock.now = 20.0
    for name in ("first", "other", "third"):
        engine.submit(ask(name, request_id=name, max_tokens=3, ignore_eos=True))
    config_clock.now = 21.0
    expected = replace(NOTHING, waiting=3, free_blocks=10, total_blocks=10, max_slots=2, last_step_age_s=1.0)
    assert engine.stats() == expected
    step(engine)
    config_clock.now = 23.0
    first = replace(
        expected,
        steps=1,
        running=2,
        waiting=1,
        free_blocks=6,
        batch_rows=2,
        prompt_tokens=5,
        output_tokens=1,
        peak_batch=2,
        last_step_age_s=2.0,
        recent_batches=(2,),
    )
    assert engine.stats() == first
    runner.not_finite.add("third")
    step_until_idle(engine)
    assert engine.stats() == (
        replace(
            first,
            steps=4,
            running=0,
            waiting=0,
            free_blocks=10,
            batch_rows=8,
            prompt_tokens=15,
            output_tokens=6,
            completed=2,
            failed=1,
            mean_batch=4 / 3,
            last_step_age_s=0.0,
            recent_batches=(2, 2, 2, 2),
        )
    )


def test_text_that_was_held_back_is_shown_before_a_request_fails() -> None:
    deltas: list[Delta] = []
    runner = Watched()
    engine = engine_of(runner, deltas, deltas_per_s=1e-3)
    future = engine.submit(ask("hello", max_tokens=9, ignore_eos=True))
    for _ in range(3):
        step(engine)
    assert [len(delta.token_ids) for delta in deltas] == [1], "the next pause has not ended"
    runner.failures.append(RuntimeError("broken"))
    step(engine)
    error = future.exception(0)
    assert isinstance(error, StepFailed)
    assert "(RuntimeError)" in str(error)
    assert [(delta.seq, len(delta.token_ids)) for delta in deltas] == [(1, 1), (2, 2)]
    assert error.progress == EmittedOutput(
        tuple(delta.text for delta in deltas), tuple(delta.token_ids for delta in deltas), (), 0.0
    )


def test_a_failure_alone_makes_room_too() -> None:
    calls: list[str] = []
    for completions, failures, room in (((), (), 0), ((1,), (), 1), ((), (1,), 1)):
        outbox: Outbox[object] = Outbox()
        for _ in completions:
            outbox.completions.append((_future(), 1))
        for _ in failures:
            outbox.failures.append((_future(), failure_of(ValueError(), "pass")))
        outbox.deliver(lambda deltas: calls.append("deltas"), lambda: calls.append("room"))
        assert calls == ["room"] * room
        calls.clear()


def _future() -> Any:
    future: Future[object] = Future()
    future.set_running_or_notify_cancel()
    return future


def test_what_a_request_is_told_of_itself() -> None:
    deltas: list[Delta] = []
    engine = LLMEngine(Watched(), Late, EngineConfig(), on_deltas=deltas.extend, clock=config_clock)
    sampling = SamplingParams(3, ignore_eos=True, logprobs=1, stop=("zz",))
    future = engine.submit(EngineRequest("r", tuple(b"prompt"), sampling))
    for config_clock.now in (11.0, 13.0, 16.0):
        step(engine)
    done = future.result(0)
    scores = tuple(SampledLogprobs(0.0, (token,), (0.0,)) for token in done.token_ids)
    assert done == CompletionOutput(
        request_id="r",
        text=bytes(done.token_ids).decode(),
        token_ids=done.token_ids,
        deltas=(done.text,),
        finish_reason=FinishReason.LENGTH,
        num_prompt_tokens=6,
        queued_s=1.0,
        first_token_s=1.0,
        total_s=6.0,
        delta_token_ids=(done.token_ids,),
        logprobs=scores,
    )
    assert deltas == [Delta("r", 1, done.text, done.token_ids, scores)]
    assert done.progress == EmittedOutput((done.text,), (done.token_ids,), scores, 1.0)


def test_an_inference_servers_own_counts_are_given_on() -> None:
    state = seq(ask("prompt"))
    assert state.add_text("answer", 2.0, 0) is None
    state.reported_prompt_tokens, state.reported_output_tokens, state.reported_reasoning_tokens = 12, 34, 5
    assert state.note_found(4) == 4
    state.was_preempted = True
    assert state.note_found(1) == 0, "its own blocks, found again"
    state.was_preempted = False
    assert state.note_found(9) == 2, "no more than the prompt has"
    state.take_delta()
    done = state.completion(FinishReason.CANCELLED, 7.0)
    assert (done.num_prompt_tokens, done.num_output_tokens, done.num_reasoning_tokens) == (12, 34, 5)
    assert (done.num_cached_tokens, done.queued_s, done.first_token_s, done.total_s) == (6, 7.0, 2.0, 7.0)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            EngineRequest("r", (1,), SamplingParams(1, logprobs=21)),
            "at most 20",
        ),
        (
            EngineRequest("r", (1,), SamplingParams(1, logprobs=-1)),
            "at most 20",
        ),
        (replace(ask(), pause_after=0), "one token"),
    ],
)
def test_a_request_that_no_engine_can_compute_says_why(request_: EngineRequest, message: str) -> None:
    engine = engine_of(Watched())
    with pytest.raises(RequestInvalid) as refused:
        engine.check(request_)
    assert message in str(refused.value)
    engine.check(EngineRequest("r", (1,), SamplingParams(1, logprobs=20)))
    engine.check(EngineRequest("r", (1,), SamplingParams(0, echo=True)))


def test_a_request_that_is_too_long_says_by_how_much() -> None:
    engine = engine_of(Watched(num_blocks=10))
    engine.check(ask("12345", max_tokens=35))
    with pytest.raises(RequestTooLong) as refused:
        engine.check(ask("12345", max_tokens=36))
    assert "max_tokens 36 are 41" in str(refused.value)


@pytest.mark.parametrize(
    "config", [{"max_slots": 0}, {"step_tokens": 0}, {"stretch": 1.0}, {"deltas_per_s": 0.0}, {"deltas_per_s": -1.0}]
)
def test_a_configuration_that_could_run_nothing_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_slots, step_tokens"):
        EngineConfig(**config)


def test_only_outputs_that_came_to_their_end_are_learned_from() -> None:
    engine = engine_of(Watched(num_blocks=64), max_slots=64)
    for number in range(FEWEST):
        request = ask(f"{number}", request_id=f"{number}", max_tokens=40, ignore_eos=True)
        engine.submit(request if number else replace(request, pause_after=3))
        step(engine)
    engine.cancel("1")
    step_until_idle(engine)
    assert not engine.can_admit(4, 200, count=2), "two of them were handed back and cancelled: all of max_tokens counts"
    for number in range(2):
        engine.submit(ask("more", request_id=f"more {number}", max_tokens=40, ignore_eos=True))
    step_until_idle(engine)
    assert engine.can_admit(4, 200, count=5), "44 tokens each"
    assert not engine.can_admit(4, 200, count=6)


def encoder_of(encoder: FakeEncoder, **config: Any) -> EncodeEngine:
    return EncodeEngine(encoder, EncodeConfig(**config), clock=config_clock)


def test_an_encoder_counts_its_passes_and_their_padding() -> None:
    engine = encoder_of(FakeEncoder(), step_tokens=64, max_slots=7)
    future = engine.submit(EncodeRequest("r", ((1,) * 5, (2,) * 3, (3,) * 4)))
    config_clock.now = 12.0
    assert engine.stats() == replace(NOTHING, waiting=1, max_slots=7, last_step_age_s=2.0)
    engine.step()
    assert engine.stats() == replace(
        NOTHING,
        steps=1,
        max_slots=7,
        batch_rows=3,
        padding_tokens=3,
        prompt_tokens=12,
        completed=1,
        mean_batch=3.0,
        peak_batch=3,
        recent_batches=(3,),
    )
    vectors = tuple(fake_vector((number,) * count) for number, count in ((1, 5), (2, 3), (3, 4)))
    assert future.result(0) == EncodeOutput("r", vectors, FinishReason.STOP, 12, 2.0)


def test_a_request_of_an_encoder_runs_from_its_first_vector_on() -> None:
    engine = encoder_of(FakeEncoder(), step_tokens=4)
    long = engine.submit(EncodeRequest("long", ((1,) * 4, (2,) * 3)))
    engine.submit(EncodeRequest("next", ((1,) * 4,)))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens) == (1, 1, 4), "the longest input is the first"
    engine.cancel("long")
    config_clock.now = 13.0
    engine.step()
    assert long.result(0) == EncodeOutput("long", (), FinishReason.CANCELLED, 4, 3.0)


class Broken(FakeEncoder):
    """Fails in every pass, or gives one vector too many."""

    def __init__(self, *, is_long: bool) -> None:
        super().__init__()
        self.is_long = is_long
        self.num_passes = 0

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        self.num_passes += 1
        if not self.is_long:
            raise OSError("always")
        return [b"", *super().run(rows)]


@pytest.mark.parametrize("is_long", [False, True])
@pytest.mark.parametrize(("num_inputs", "num_passes"), [(4, 7), (500, MAX_PASSES + 1)])
def test_an_encoder_that_always_fails_is_not_asked_for_ever(num_inputs: int, num_passes: int, *, is_long: bool) -> None:
    encoder = Broken(is_long=is_long)
    engine = encoder_of(encoder, step_tokens=1000)
    future = engine.submit(EncodeRequest("r", tuple((number,) for number in range(num_inputs))))
    engine.step()
    error = future.exception(0)
    name = "ValueError" if is_long else "OSError"
    assert f"({name})" in str(error)
    assert num_passes <= encoder.num_passes <= 2 * num_passes
    assert num_inputs == 500 or encoder.num_passes == num_passes
    assert engine.stats().failed == 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "an input"),
        (((1,), ()), "an input"),
        (((1,) * 8193,), "8193 tokens"),
    ],
)
def test_an_input_that_no_encoder_takes_is_refused(inputs: tuple[tuple[int, ...], ...], message: str) -> None:
    encoder = FakeEncoder()
    encoder.context_window = 8192
    engine = encoder_of(encoder)
    engine.check(EncodeRequest("r", ((1,) * 8192,)))
    with pytest.raises((RequestInvalid, RequestTooLong)) as refused:
        engine.check(EncodeRequest("r", inputs))
    assert message in str(refused.value)


class Hung:
    """Calls that wait until the test lets them go."""

    context_window = 10

    def __init__(self) -> None:
        self.begun, self.may_end = Event(), Event()

    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | Exception | None]:
        self.begun.set()
        assert self.may_end.wait(WAIT_S)
        return [None for _ in rows]


def test_a_calls_limit_begins_with_the_call() -> None:
    calls, room = Hung(), Event()
    engine = CallEngine(calls, CallConfig(max_slots=2, timeout_s=10.0), clock=config_clock, on_room=room.set)
    future = engine.submit(EncodeRequest("a", ((1, 2),)))
    config_clock.now = 15.0
    assert (engine.stats().running, engine.stats().waiting) == (0, 1)
    engine.step()
    assert calls.begun.wait(WAIT_S)
    assert (engine.stats().running, engine.stats().waiting) == (1, 0)
    config_clock.now = 24.9
    engine.step()
    assert not future.done()
    config_clock.now = 25.0
    engine.step()
    error = future.exception(0)
    assert isinstance(error, CallTimedOut)
    assert "10 s" in str(error)
    assert room.is_set()
    assert engine.can_admit(1, 1)
    assert not engine.can_admit(1, 1, count=2), "its thread still has a slot"
    cancelled = engine.submit(EncodeRequest("b", ((1, 2),)))
    engine.cancel("b")
    engine.step()
    assert cancelled.result(0) == EncodeOutput("b", (), FinishReason.CANCELLED, 0, 0.0)
    room.clear()
    calls.may_end.set()
    assert room.wait(WAIT_S), "the thread that was left behind has returned"
    assert engine.can_admit(1, 1, count=2)
    engine.stop(WAIT_S)


def test_the_tokens_of_a_pass_are_taken_up_to_the_end() -> None:
    state = seq(ask("p", max_tokens=9))
    state.num_cached = 1
    scores = (SampledLogprobs(-1.0),)
    found = Sampled(state.id, ord("c"), accepted=(ord("a"), ord("b")), prompt_logprobs=scores)
    assert state.take(found, 1.0) is None
    assert (state.output, state.num_cached, state.prompt_logprobs) == ([*b"abc"], 3, scores)
    assert state.take(Sampled(state.id, ord("e"), accepted=(ord("d"), EOS)), 2.0) is FinishReason.STOP
    assert (state.output, state.num_cached) == ([*b"abcd", EOS], 4)
    assert state.first_token_at == 1.0
    assert inf > state.num_pending == 2
