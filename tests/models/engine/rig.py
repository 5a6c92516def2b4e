"""What the engine's tests share: requests, a detokenizer, a watched fake, and the slow obvious reference."""

import codecs
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from headrace.models.engine.llm_engine import LLMEngine
from headrace.models.engine.requests import CompletionOutput, EngineRequest, FinishReason, RequestId, SamplingParams
from headrace.models.engine.runner import Sampled, StepPlan
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.stop_strings import TokenDecoder
from headrace.models.fakes.fake import EOS, FakeRunner, PlanError, next_token

WAIT_S = 60.0

_ids = itertools.count(1)


class Bytes:
    """A detokenizer of bytes that never shows half a character."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        return self._utf8.decode(bytes([token_id]) if token_id < EOS else b"")

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class Late:
    """A detokenizer that is certain of nothing before the end."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, token_id: int) -> str:
        self._text += chr(token_id)
        return ""

    def flush(self) -> str:
        return self._text


@dataclass
class Clock:
    """Stands still until it is set."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class Ticking(Clock):
    """Goes on by as much at each look, so that every pass takes the same, however many tokens are in it."""

    now: float = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def ask(
    prompt: str = "hello",
    *,
    max_tokens: int = 64,
    stop: Iterable[str] = (),
    ignore_eos: bool = False,
    deadline: float | None = None,
    request_id: str | None = None,
    salt: str = "",
    class_rank: int = 0,
) -> EngineRequest:
    sampling = SamplingParams(max_tokens=max_tokens, stop=tuple(stop), ignore_eos=ignore_eos)
    name = request_id or f"r{next(_ids)}"
    return EngineRequest(name, tuple(prompt.encode()), sampling, deadline, cache_salt=salt, class_rank=class_rank)


def seq(request: EngineRequest, detokenizer: TokenDecoder | None = None) -> SequenceState:
    return SequenceState(request, detokenizer or Bytes(), frozenset({EOS}), now=0.0)


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """Return the text before the first complete stop string, letter by letter; None without one."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)]
    return None


@dataclass(frozen=True)
class Expected:
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


def alone(request: EngineRequest) -> Expected:
    """Return the fake model's output for the prompt alone, without an engine."""
    sampling = request.sampling
    tokens: list[int] = []
    while len(tokens) < sampling.max_tokens:
        tokens.append(next_token(request.prompt, tokens, ends=not sampling.ignore_eos))
        if tokens[-1] == EOS:
            return Expected(bytes(tokens[:-1]).decode(), tuple(tokens), FinishReason.STOP)
        text = bytes(tokens).decode()
        cut = cut_at_stop(text, sampling.stop)
        if cut is not None:
            return Expected(cut, tuple(tokens), FinishReason.STOP)
    return Expected(bytes(tokens).decode(), tuple(tokens), FinishReason.LENGTH)


def check_answers(requests: list[EngineRequest], futures: list[Future[CompletionOutput]]) -> None:
    for request, future in zip(requests, futures, strict=True):
        completion, expected = future.result(WAIT_S), alone(request)
        assert (completion.text, completion.token_ids, completion.finish_reason) == (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
        )


@dataclass
class Watched(FakeRunner):
    """A fake that records plans and contract violations, and fails on request."""

    num_blocks: int = 64
    block_tokens: int = 4
    context_window: int = 256
    spare_tokens: int = 0
    lookahead_tokens: int = 0
    plans: list[StepPlan] = field(default_factory=list)
    breaches: list[PlanError] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # one is raised by each of the next steps
    not_finite: set[RequestId] = field(default_factory=set)
    forgotten: list[RequestId] = field(default_factory=list)
    elapsed: float = 0.0  # seconds that its passes took: next to none, but more for more tokens

    def __post_init__(self) -> None:
        super().__init__(
            num_blocks=self.num_blocks,
            block_tokens=self.block_tokens,
            context_window=self.context_window,
            spare_tokens=self.spare_tokens,
            lookahead_tokens=self.lookahead_tokens,
            fault=self.fail,
            is_finite=lambda row: row.request.id not in self.not_finite,
        )

    def run(self, plan: StepPlan) -> list[Sampled]:
        self.plans.append(plan)
        self.elapsed += 1e-9 * plan.num_tokens
        try:
            return super().run(plan)
        except PlanError as error:
            self.breaches.append(error)
            raise

    def forget(self, request_id: RequestId) -> None:
        super().forget(request_id)
        self.forgotten.append(request_id)

    def fail(self, plan: StepPlan) -> None:
        for row in plan.rows if self.failures else ():
            for position in range(row.start, row.start + len(row.tokens)):  # a failed pass may leave this behind
                block, offset = row.blocks[position // self.block_tokens], position % self.block_tokens
                self._cache[block][offset] = self._written[block][offset] = -2
        if self.failures:
            raise self.failures.pop(0)


def step(engine: LLMEngine) -> None:
    """Run one step of an engine without a thread, in this thread."""
    engine.step()


def num_inside(engine: LLMEngine) -> int:
    """Return how many requests have entered the engine and not ended."""
    stats = engine.stats()
    return stats.running + stats.waiting


def step_until_idle(engine: LLMEngine, limit: int = 5000) -> int:
    """Step until the engine is empty; return the number of steps."""
    for num_steps in range(limit):
        if not num_inside(engine):
            return num_steps
        step(engine)
    raise AssertionError(f"{num_inside(engine)} requests still active after {limit} steps")
