"""What a caller of the engine sees of one request: refusal, credit, deltas, cancelling, a deadline. No thread runs."""

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    Delta,
    EngineError,
    EngineRequest,
    FinishReason,
    RequestInvalid,
    RequestTooLong,
)
from tests.models.engine.rig import Bytes, Clock, Watched, alone, ask, check_answers, step, step_until_idle


def test_deltas_of_a_step_come_in_one_call_before_the_outcomes() -> None:
    told: list[object] = []
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: told.append([d.text for d in deltas]))
    for request in (ask("one", max_tokens=2, ignore_eos=True), ask("two", max_tokens=1, ignore_eos=True)):
        engine.submit(request).add_done_callback(lambda future: told.append(future.result().finish_reason))
    first, second = (alone(ask(prompt, max_tokens=2, ignore_eos=True)).text for prompt in ("one", "two"))
    step_until_idle(engine)
    assert told == [[first[0], second[0]], FinishReason.LENGTH, [first[1]], FinishReason.LENGTH]


def test_a_cancelled_request_keeps_its_text_and_frees_its_blocks_before_the_next_step() -> None:
    runner = Watched(num_blocks=8, block_tokens=4)
    deltas: list[Delta] = []
    engine = LLMEngine(runner, Bytes, EngineConfig(), on_deltas=deltas.extend)
    request = ask("cancel me", max_tokens=20, stop=["zzz"], ignore_eos=True)
    future = engine.submit(request)
    for _ in range(5):
        step(engine)
    assert engine.cancel(request.id)
    num_plans = len(runner.plans)
    step(engine)
    assert engine.stats().free_blocks == 8
    assert len(runner.plans) == num_plans
    completion = future.result(0)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.text == alone(request).text[:5] == "".join(delta.text for delta in deltas)
    assert not engine.cancel(request.id)


def test_text_that_was_held_back_is_told_when_the_request_is_cancelled() -> None:
    deltas: list[Delta] = []
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=deltas.extend)
    whole = alone(ask("hold", ignore_eos=True)).text
    request = ask("hold", stop=[whole[:6] + "!"], ignore_eos=True)
    future = engine.submit(request)
    for _ in range(4):
        step(engine)
    assert deltas == []
    engine.cancel(request.id)
    step(engine)
    assert [(delta.seq, delta.text, len(delta.token_ids)) for delta in deltas] == [(1, whole[:4], 4)]
    assert future.result(0).deltas == (whole[:4],)


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits() -> None:
    clock = Clock(100.0)
    engine = LLMEngine(Watched(), Bytes, EngineConfig(max_slots=1), on_deltas=lambda deltas: None, clock=clock)
    running = engine.submit(ask("a", ignore_eos=True, deadline=103.0))
    waiting = engine.submit(ask("b", deadline=102.0))
    for clock.now in (101.0, 102.0, 103.0):
        step(engine)
    ran, waited = running.result(0), waiting.result(0)
    assert (ran.finish_reason, len(ran.token_ids), ran.queued_s, ran.first_token_s, ran.total_s) == (
        FinishReason.DEADLINE,
        2,
        1.0,
        1.0,
        3.0,
    )
    assert (waited.finish_reason, waited.text, waited.queued_s, waited.first_token_s) == (
        FinishReason.DEADLINE,
        "",
        2.0,
        None,
    )


class Picky(Bytes):
    """Knows no letter e."""

    def add(self, token_id: int) -> str:
        if token_id == ord("e"):
            raise KeyError(token_id)
        return super().add(token_id)


def test_a_detokenizer_that_raises_fails_its_request_alone() -> None:
    detokenizers = iter([Picky(), Bytes()])
    engine = LLMEngine(Watched(), lambda: next(detokenizers), EngineConfig(), on_deltas=lambda deltas: None)
    requests = [ask("same", ignore_eos=True), ask("same", ignore_eos=True)]
    futures = [engine.submit(request) for request in requests]
    step_until_idle(engine)
    assert type(futures[0].exception(0)) is EngineError
    check_answers(requests[1:], futures[1:])
    assert engine.stats().free_blocks == 64


def test_a_future_cannot_be_cancelled_under_the_engine() -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    future = engine.submit(ask())
    assert not future.cancel()
    step_until_idle(engine)
    assert future.done()


@pytest.mark.parametrize(
    "request_",
    [ask(""), ask(max_tokens=0), ask(stop=["a", ""])],
    ids=["no prompt", "no tokens", "empty stop string"],
)
def test_what_can_never_be_computed_is_refused(request_: EngineRequest) -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    with pytest.raises(RequestInvalid):
        engine.submit(request_)


def test_an_id_is_used_once_at_a_time() -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    engine.submit(ask(request_id="same"))
    with pytest.raises(RequestInvalid):
        engine.submit(ask(request_id="same"))
    step_until_idle(engine)
    engine.submit(ask(request_id="same"))


@pytest.mark.parametrize(("num_blocks", "context_window", "limit"), [(10, 256, 40), (64, 50, 50)])
def test_what_can_never_fit_is_refused_at_once(num_blocks: int, context_window: int, limit: int) -> None:
    runner = Watched(num_blocks=num_blocks, block_tokens=4, context_window=context_window)
    engine = LLMEngine(runner, Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    with pytest.raises(RequestTooLong, match=f"at most {limit} fit"):
        engine.submit(ask("12345", max_tokens=limit - 4))
    future = engine.submit(ask("12345", max_tokens=limit - 5, ignore_eos=True))
    step_until_idle(engine)
    assert len(future.result(0).token_ids) == limit - 5


@pytest.mark.parametrize(("max_slots", "step_tokens"), [(0, 8), (8, 0)])
def test_a_configuration_in_which_nothing_runs_is_refused(max_slots: int, step_tokens: int) -> None:
    with pytest.raises(ValueError, match="an engine needs"):
        EngineConfig(max_slots, step_tokens)
