"""A request that goes on in another engine: as if it had never stopped, wherever that was, or refused."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from math import inf

import pytest

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import (
    CheckpointMismatch,
    CompletionOutput,
    Delta,
    EmittedOutput,
    EngineRequest,
    EngineStopped,
    FinishReason,
    RequestInvalid,
)
from headrace.models.engine.runner import Row, RunnerBroken, Sampled, StepPlan
from headrace.models.fakes.fake import EOS, FakeRunner
from tests.models.engine.rig import WAIT_S, Bytes, Late, Watched, alone, ask, seq, step, step_until_idle


class Says(FakeRunner):
    """Says one text, byte by byte, and ends."""

    def __init__(self, text: bytes) -> None:
        super().__init__(num_blocks=64, block_tokens=4, context_window=256)
        self._tokens = (*text, EOS)

    def _sample(self, row: Row) -> Sampled:
        return Sampled(row.request.id, self._tokens[len(row.output)])


def run(runner: FakeRunner, request: EngineRequest, deltas_per_s: float = inf) -> tuple[CompletionOutput, list[Delta]]:
    """Run one request in its own engine, with a clock that advances by 10 ms at each reading."""
    deltas: list[Delta] = []
    config = EngineConfig(step_tokens=7, deltas_per_s=deltas_per_s)
    ticks = itertools.count()
    engine = LLMEngine(runner, Bytes, config, on_deltas=deltas.extend, clock=lambda: next(ticks) * 0.01)
    future = engine.submit(request)
    step_until_idle(engine)
    return future.result(0), deltas


def go_on(request: EngineRequest, progress: EmittedOutput, *, pause_after: int | None = None) -> EngineRequest:
    tokens = tuple(itertools.chain(*progress.token_ids))
    return replace(request, emitted=tokens, emitted_deltas=progress.deltas, pause_after=pause_after)


WHOLE = "the wheel über 水車 und 🦆 turns; the mill waits".encode()
STOPS = [("no stop", ()), ("a stop string", ("mill",)), ("one that begins often", ("turns; the mill!", "🦆 turns; x"))]


@pytest.mark.parametrize("max_tokens", [200, 40], ids=["to its end", "to max_tokens, within a character"])
@pytest.mark.parametrize("stop", [stop for _, stop in STOPS], ids=[name for name, _ in STOPS])
def test_stopped_at_any_token_it_goes_on_as_if_it_had_not(stop: tuple[str, ...], max_tokens: int) -> None:
    request = ask(max_tokens=max_tokens, stop=stop)
    whole, shown = run(Says(WHOLE), request)
    for num_tokens in range(1, len(whole.token_ids)):
        first, before = run(Says(WHOLE), replace(request, pause_after=num_tokens))
        assert (first.finish_reason, len(first.token_ids)) == (FinishReason.HANDED_BACK, num_tokens)
        assert whole.deltas[: len(first.deltas)] == first.deltas
        second, after = run(Says(WHOLE), go_on(request, first.progress))
        same = ("text", "token_ids", "deltas", "delta_token_ids", "finish_reason")
        assert [getattr(second, name) for name in same] == [getattr(whole, name) for name in same]
        assert before + after == shown


@pytest.mark.parametrize("stop", [stop for _, stop in STOPS], ids=[name for name, _ in STOPS])
def test_an_attempt_goes_on_after_text_that_was_shown_in_larger_pieces(stop: tuple[str, ...]) -> None:
    request = ask(max_tokens=200, stop=stop)
    whole, _ = run(Says(WHOLE), request)
    for num_tokens in range(1, len(whole.token_ids)):
        first, before = run(Says(WHOLE), replace(request, pause_after=num_tokens), deltas_per_s=1)
        assert len(before) < max(3, num_tokens / 2), "pieces of several tokens, the last of them at the end"
        second, after = run(Says(WHOLE), go_on(request, first.progress))
        assert [getattr(second, name) for name in ("text", "token_ids")] == [whole.text, whole.token_ids]
        shown = before + after
        assert [delta.seq for delta in shown] == list(range(1, len(shown) + 1))
        assert "".join(delta.text for delta in shown) == whole.text


def test_many_short_attempts_say_what_one_long_one_does() -> None:
    request = ask("a long question", max_tokens=60, ignore_eos=True)
    expected = alone(request)
    progress, shown = EmittedOutput(), []
    for _ in range(60):
        completion, deltas = run(Watched(), go_on(request, progress, pause_after=2))
        shown += deltas
        progress = completion.progress
        if completion.finish_reason is not FinishReason.HANDED_BACK:
            break
    assert (completion.text, completion.token_ids) == (expected.text, expected.token_ids)
    assert [delta.seq for delta in shown] == list(range(1, len(shown) + 1))


def test_max_tokens_counts_what_was_emitted_before() -> None:
    request = ask(max_tokens=10, ignore_eos=True)
    first, _ = run(Watched(), replace(request, pause_after=4))
    second, _ = run(Watched(), go_on(request, first.progress, pause_after=6))
    assert (second.finish_reason, len(second.token_ids)) == (FinishReason.LENGTH, 10)


@pytest.mark.parametrize(
    ("text", "max_tokens", "reason"),
    [
        (b"half a letter \xc3", 99, FinishReason.STOP),
        (b"water", 5, FinishReason.LENGTH),
        ("wäter".encode(), 2, "length"),
    ],
)
def test_an_attempt_that_was_at_its_end_ends_at_once(text: bytes, max_tokens: int, reason: str) -> None:
    request = ask(max_tokens=max_tokens)
    whole, _ = run(Says(text), request)
    runner = Watched()
    again, deltas = run(runner, go_on(request, whole.progress))
    assert (again.finish_reason, again.deltas, again.token_ids) == (reason, whole.deltas, whole.token_ids)
    assert (deltas, runner.plans) == ([], [])


def test_a_hand_back_shows_nothing_that_is_not_certain() -> None:
    deltas: list[Delta] = []
    engine = LLMEngine(Says("aé END".encode()), Bytes, EngineConfig(), on_deltas=deltas.extend)
    future = engine.submit(request := ask(stop=["END"]))
    for _ in range(2):
        step(engine)
    engine.cancel(request.id, FinishReason.HANDED_BACK)
    step(engine)
    completion = future.result(0)
    assert (completion.text, completion.finish_reason) == ("a", FinishReason.HANDED_BACK)
    assert len(completion.token_ids) == 2, "half of é was sampled"
    assert replace(completion.progress, first_token_s=None) == EmittedOutput(("a",), ((ord("a"),),))
    assert [delta.text for delta in deltas] == ["a"]


def test_a_request_that_was_cancelled_is_not_handed_back() -> None:
    engine = LLMEngine(Says(b"abc"), Bytes, EngineConfig(), on_deltas=lambda _: None)
    future = engine.submit(request := ask())
    step(engine)
    assert engine.cancel(request.id)
    assert engine.cancel(request.id, FinishReason.HANDED_BACK), "a drain, before the next step"
    step(engine)
    assert future.result(0).finish_reason is FinishReason.CANCELLED


@pytest.mark.parametrize(
    ("emitted", "deltas"),
    [
        (b"ab", ("a", "c")),
        (b"ab", ("abc",)),
        (b"ab", ("a",)),
        (b"a", ("a", "b")),
        (b"", ("a",)),
        (b"a", ()),
        ("é".encode()[:1], ()),
        ("aé".encode()[:2], ("a",)),
    ],
)
def test_what_the_tokens_do_not_make_is_refused(emitted: bytes, deltas: tuple[str, ...]) -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    request = replace(ask(), emitted=tuple(emitted), emitted_deltas=deltas)
    for refuse in (engine.check, engine.submit):
        with pytest.raises(CheckpointMismatch):
            refuse(request)
    assert engine.stats().waiting == 0


@pytest.mark.parametrize("request_", [ask(max_tokens=1), ask(stop=["a"]), ask()])
def test_tokens_beyond_the_end_are_refused(request_: EngineRequest) -> None:
    tokens = (ord("a"), EOS, ord("b")) if request_.sampling.max_tokens > 1 else tuple(b"ab")
    with pytest.raises(CheckpointMismatch, match="beyond"):
        seq(replace(request_, emitted=tokens, emitted_deltas=("a", "b")))


def test_tokens_that_no_text_can_be_made_of_are_refused() -> None:
    with pytest.raises(CheckpointMismatch):
        seq(replace(ask(), emitted=(-2,), emitted_deltas=("a",)), Late())


def test_a_pause_of_nothing_is_no_request() -> None:
    engine = LLMEngine(Watched(), Bytes, EngineConfig(), on_deltas=lambda deltas: None)
    with pytest.raises(RequestInvalid):
        engine.submit(replace(ask(), pause_after=0))


def stop(engine: LLMEngine, _runner: Watched) -> None:
    engine.stop(0)


def break_down(engine: LLMEngine, runner: Watched) -> None:
    def fail(_plan: StepPlan) -> None:
        raise RunnerBroken("device lost")

    runner.fault = fail
    engine.start()


@pytest.mark.parametrize("end", [stop, break_down])
def test_an_engine_that_stops_gives_out_what_it_had(end: Callable[[LLMEngine, Watched], None]) -> None:
    deltas: list[Delta] = []
    runner = Watched()
    engine = LLMEngine(runner, Bytes, EngineConfig(), on_deltas=deltas.extend)
    request = ask(max_tokens=40, ignore_eos=True)
    future: Future[CompletionOutput] = engine.submit(request)
    for _ in range(5):
        step(engine)
    end(engine, runner)
    error = future.exception(WAIT_S)
    assert type(error) is EngineStopped
    assert error.progress is not None
    assert error.progress.deltas == tuple(delta.text for delta in deltas)
    completion, _ = run(Watched(), go_on(request, error.progress))
    assert completion.text == alone(request).text
