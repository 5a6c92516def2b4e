"""The Runner on torch: a plan in, one pass of the model over all its rows, one token per sampled row out.

Owns the weights, the cache's tensors and the sampling state. A request whose numbers stop being finite is reported so
from then on, and its blocks are wiped, so that the others never see what it wrote.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from models.engine.requests import EngineRequest, RequestId, SamplingParams
from models.engine.runner import Row, RunnerBroken, Sampled, StepPlan
from models.families.model import Batch, BatchBuilder, Cache, CausalModel
from models.sampling.sample_positions import num_accepted, places_of
from models.sampling.sampler import Choice, Sampler
from prompts.grammar import Grammars

_SPARE_TOKENS = {"cpu": 16, "cuda": 64}
"""Below these the weights' way to the processor takes most of a pass's time, not the arithmetic."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a pass made of each row, in the pass's order."""

    sampled: dict[RequestId, Sampled]
    broken: tuple[Row, ...]


@contextmanager
def errors_named() -> Iterator[None]:
    """Give torch's errors the types that the engine knows: what no later step survives, and lack of memory."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise RunnerBroken(f"the device failed: {error}") from error
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise MemoryError(str(error)) from error
        raise


class TorchRunner:
    """Computes steps for one model on one device."""

    def __init__(
        self,
        model: CausalModel,
        cache: Cache,
        *,
        batches: BatchBuilder,
        context_window: int,
        eos_token_ids: frozenset[int],
        device: torch.device,
        grammars: Grammars | None = None,
    ) -> None:
        self.context_window = context_window
        self.eos_token_ids = eos_token_ids
        self.num_blocks = cache.num_blocks
        self.block_tokens = cache.block_tokens
        self.spare_tokens = _SPARE_TOKENS.get(device.type, 0)
        self._model = model
        self._cache = cache
        self._batches = batches
        self._sampler = Sampler(model.config.vocab_size, device, grammars)
        self._broken: set[RequestId] = set()

    @property
    def model(self) -> CausalModel:
        """The weights and the pass."""
        return self._model

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write the rows' keys and values, and return one Sampled for each row with ``sample`` or that broke."""
        if not plan.rows:
            return []
        with errors_named():
            outcome = self._compute(self._batches.build(plan))
            self._contain(outcome.broken)
        told = (row.request.id for row in plan.rows if row.sample or row.request.id in self._broken)
        return [self._sampled(request_id, outcome) for request_id in told]

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits after each of ``tokens``, (n, vocab) in float32, in one pass that overwrites the cache.

        For a runner that serves no request now. Raises ValueError if the tokens do not fit.
        """
        if not 0 < len(tokens) <= min(self.context_window, self.num_blocks * self.block_tokens):
            raise ValueError(f"{len(tokens)} tokens do not fit a context of {self.context_window} in this cache")
        request = EngineRequest("score", tuple(tokens), SamplingParams(max_tokens=1))
        blocks = range(-(-len(tokens) // self.block_tokens))
        plan = StepPlan((Row(request, tokens, 0, blocks, (), sample=False),))
        with errors_named():
            return self._model.logits(self._model.forward(self._batches.build(plan), self._cache))

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid for a grammar that no answer of this model could follow."""
        self._sampler.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop whatever is kept for a request that has ended."""
        self._broken.discard(request_id)
        self._sampler.forget(request_id)

    def _sampled(self, request_id: RequestId, outcome: _Outcome) -> Sampled:
        if request_id in self._broken:
            return Sampled(request_id, None, finite=False)
        return outcome.sampled[request_id]

    def _compute(self, batch: Batch) -> _Outcome:
        hidden = self._model.forward(batch, self._cache)
        # One number a token, NaN or infinite if any of its values is.
        is_finite = hidden.sum(dim=-1, dtype=torch.float).isfinite()
        rows = [row for row in batch.rows if row.sample]
        if not rows:
            return _Outcome({}, self._broken_rows(batch, is_finite.tolist(), {}))
        places = places_of(rows)
        ends = {row.request.id: end for row, end in zip(batch.rows, batch.ends, strict=True)}
        picked = self._batches.send(
            [ends[place.row.request.id] - len(place.row.drafts) + place.num_drafts for place in places]
        )
        choice = self._sampler.sample(self._model.logits(hidden[picked]), places)
        # Together, because each answer that the host reads is a wait for the device.
        values = torch.cat((choice.tokens, choice.is_sound, is_finite)).tolist()
        tokens, is_sound = values[: len(places)], values[len(places) : 2 * len(places)]
        sampled = _by_request(rows, tokens, is_sound, choice)
        broken = self._broken_rows(batch, values[2 * len(places) :], sampled)
        return _Outcome(sampled, broken)

    @staticmethod
    def _broken_rows(batch: Batch, is_finite: Sequence[int], sampled: Mapping[RequestId, Sampled]) -> tuple[Row, ...]:
        unsound = {one.request_id for one in sampled.values() if not one.finite}
        if all(is_finite) and not unsound:
            return ()
        starts = [end + 1 - len(row.tokens) for row, end in zip(batch.rows, batch.ends, strict=True)]
        spans = zip(batch.rows, starts, batch.ends, strict=True)
        return tuple(
            row for row, start, end in spans if row.request.id in unsound or not all(is_finite[start : end + 1])
        )

    def _contain(self, broken: tuple[Row, ...]) -> None:
        for row in broken:
            self._broken.add(row.request.id)
            # Its own alone: the blocks before are finite, and may be shared.
            first = row.start // self.block_tokens
            self._cache.clear(self._batches.send(row.blocks[first:]))


def _by_request(
    rows: Sequence[Row], tokens: Sequence[int], is_sound: Sequence[int], choice: Choice
) -> dict[RequestId, Sampled]:
    """Cut what was chosen at the places into rows, each up to the first draft that does not hold."""
    sampled = {}
    first = 0
    for row in rows:
        last = first + num_accepted(row.drafts, tokens[first : first + len(row.drafts)])
        logprobs = tuple(choice.logprobs[n] for n in range(first, last + 1) if n in choice.logprobs)
        sampled[row.request.id] = Sampled(
            row.request.id,
            None if first in choice.stuck else tokens[last],
            finite=all(is_sound[first : last + 1]),
            accepted=tuple(tokens[first:last]),
            logprobs=logprobs,
        )
        first += len(row.drafts) + 1
    return sampled
