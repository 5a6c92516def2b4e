"""The ways in which an engine may be driven. None of them may change an answer, and each must really have happened."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, EngineStats, FinishReason
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.speculation import Speculation
from headrace.models.runners.torch_runner import TorchRunner
from tests.models.driving import random_prompts
from tests.models.engine.rig import Ticking

Load = Callable[[int], TorchRunner]
"""A new runner with a cache of so many blocks."""


@dataclass(frozen=True)
class Way:
    """``pool_blocks`` are room for all or for too few, if prompts are of up to eleven blocks and answers of three.

    ``waves`` asks everything so often, one after the other in one engine, so that the later find the earlier's
    blocks. ``handed_over_after`` moves the places where another engine with another cache goes on with each request.
    """

    max_slots: int = 32
    step_tokens: int = 512
    pool_blocks: int = 256
    speculation: bool = False
    waves: int = 1
    handed_over_after: int | None = None


WAYS = {
    "alone": Way(max_slots=1),
    "with batch mates": Way(),
    "prefill in small chunks": Way(step_tokens=17),
    "prefill in tiny chunks": Way(step_tokens=5, max_slots=4),
    "preempted": Way(pool_blocks=23, step_tokens=24),
    "prefixes found": Way(waves=2),
    "speculating": Way(speculation=True, max_slots=4),
    "handed over": Way(handed_over_after=3),
    "all of it": Way(
        pool_blocks=20, step_tokens=24, speculation=True, waves=2, handed_over_after=5, max_slots=12
    ),
}  # fmt: skip


def mixed_prompts(vocab: int, count: int = 10, longest: int = 90) -> dict[str, list[int]]:
    """Return prompts of very different lengths: some that begin alike, some that repeat themselves, one asked twice."""
    prompts = {f"p{n}": prompt for n, prompt in enumerate(random_prompts(count, longest, vocab))}
    beginning = prompts["p2"][: longest // 2]
    half = count // 2
    prompts |= {f"like {n}": [*beginning, *prompts[f"p{n}"][:9]] for n in range(3, half + 1)}
    prompts |= {f"again {n}": (prompts[f"p{n}"][:12] * 4)[: longest // 2] for n in (half + 1, half + 2)}
    return prompts | {"twice": prompts["p2"]}


class Letters:
    """A detokenizer with one letter per token, so that an answer can be handed over anywhere."""

    def add(self, token_id: int) -> str:
        return chr(0x100 + token_id % 0xD000)

    def flush(self) -> str:
        return ""


def guessing(answers: Mapping[str, Sequence[int]]) -> type[Speculation]:
    """Return a Speculation that knows the answers by prompt name and makes some wrong guesses.

    Random models rarely repeat the previous text, so prompt lookup alone would rarely guess right.
    """

    class Guesses(Speculation):
        def draft(self, live: SequenceState, most: int) -> list[int]:
            super().draft(live, most)  # which begins to keep the request's pace
            begin = len(live.output)
            most = max(0, min(most, live.max_tokens - live.num_tokens - 1, begin % 7))
            drafts = list(answers[str(live.id).partition(", wave")[0]][begin : begin + most])
            return [token ^ 1 if (begin + n) % 5 == 4 else token for n, token in enumerate(drafts)]

    return Guesses


@dataclass(slots=True)
class Driven:
    """The answers by the names of their prompts, a later wave's under ``NAME, wave N``, and the engines' counters."""

    answers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    stats: list[EngineStats] = field(default_factory=list)

    def total(self, name: str) -> int:
        """Return the sum of one counter."""
        return sum(getattr(each, name) for each in self.stats)


def drive(load: Load, requests: Sequence[EngineRequest], way: Way) -> Driven:
    """Ask everything in the given way."""
    driven = Driven()
    runner = load(way.pool_blocks)
    if way.handed_over_after is None:
        for done in _in_one_engine(runner, _waves(requests, way), way, driven):
            driven.answers[done.request_id] = done.token_ids
        return driven
    # At another place each, within a block and at its border; late, or a small pool would be large enough.
    cut = [
        replace(
            each,
            pause_after=each.sampling.max_tokens - 1 - (way.handed_over_after + n) % (each.sampling.max_tokens // 3),
        )
        for n, each in enumerate(requests)
    ]
    first = {done.request_id: done for done in _in_one_engine(runner, _waves(cut, way), way, driven)}
    assert {done.finish_reason for done in first.values()} == {FinishReason.HANDED_BACK}
    rest = [[_gone_on(each, first[each.id]) for each in wave] for wave in _waves(requests, way)]
    for done in _in_one_engine(load(way.pool_blocks), rest, way, driven):
        driven.answers[done.request_id] = done.token_ids
    return driven


def _waves(requests: Sequence[EngineRequest], way: Way) -> list[list[EngineRequest]]:
    later = range(2, way.waves + 1)
    return [[*requests], *([replace(each, id=f"{each.id}, wave {n}") for each in requests] for n in later)]


def _gone_on(request: EngineRequest, done: CompletionOutput) -> EngineRequest:
    progress = done.progress
    return replace(request, emitted=tuple(chain(*progress.token_ids)), emitted_deltas=progress.deltas)


def _in_one_engine(
    runner: TorchRunner, waves: Sequence[Sequence[EngineRequest]], way: Way, driven: Driven
) -> list[CompletionOutput]:
    config = EngineConfig(max_slots=way.max_slots, step_tokens=way.step_tokens, speculation=way.speculation)
    # Where a pass takes the same whatever is in it, there are as many drafts as have room.
    engine = LLMEngine(runner, Letters, config, on_deltas=lambda deltas: None, clock=Ticking())
    done: list[CompletionOutput] = []
    try:
        for number, wave in enumerate(waves):
            # Before the start, so that all of a wave compete from the first step on.
            futures = [engine.submit(each) for each in wave]
            if number == 0:
                engine.start()
            done += [future.result(timeout=120) for future in futures]
        driven.stats.append(engine.stats())
    finally:
        engine.stop(30)
    return done


def check_happened(driven: Driven, way: Way, num_prompt_tokens: int) -> None:
    """Assert that the way's features were not idle."""
    steps, counted = driven.total("steps"), driven.total
    assert steps * way.step_tokens >= num_prompt_tokens - counted("cached_tokens")
    assert (counted("preempted") > 0) == (way.pool_blocks < 100)
    if way.speculation:
        assert counted("drafted_tokens") > counted("accepted_tokens") > 0
    if way.waves > 1:
        assert counted("cached_tokens") > 100
    if way.max_slots > 1:
        assert max(each.peak_batch for each in driven.stats) > 3


def prompts_by_answer(prompts: Mapping[str, Sequence[int]], driven: Driven) -> dict[str, Sequence[int]]:
    """Return the prompt of each answer."""
    return {name: prompts[name.partition(", wave")[0]] for name in driven.answers}
