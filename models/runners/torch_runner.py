"""The Runner on torch: a plan in, one forward pass over all its rows, one token for each sampled row out.

Owns the weights, the KV cache and the sampling state. If a request gets NaN or infinite numbers, the runner reports it
in this and all later steps and clears its blocks, so that no other request reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from headrace.models.engine.requests import EngineRequest, RequestId, SamplingParams
from headrace.models.engine.runner import Row, RunnerBroken, Sampled, StepPlan
from headrace.models.families.model import CausalModel, ForwardBatch, ModelWithCache
from headrace.models.sampling.prompt_scores import PromptScores
from headrace.models.sampling.sample_positions import num_accepted, sample_positions
from headrace.models.sampling.sampler import Choice, Sampler
from headrace.prompts.grammar import Grammars

_SPARE_TOKENS = 16
"""Up to this number of tokens, a pass on a CPU is bound by memory bandwidth, not by arithmetic."""


@dataclass(frozen=True, slots=True)
class _StepResult:
    """The result of a pass: the sampled tokens by request, and the rows with NaN or infinite numbers."""

    sampled: dict[RequestId, Sampled]
    broken: tuple[Row, ...]


@contextmanager
def translate_torch_errors() -> Iterator[None]:
    """Translate errors of torch: RunnerBroken for a failed device, MemoryError for lack of memory."""
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
        loaded: ModelWithCache,
        *,
        context_window: int,
        eos_token_ids: frozenset[int],
        device: torch.device,
        grammars: Grammars | None = None,
    ) -> None:
        self.context_window = context_window
        self.eos_token_ids = eos_token_ids
        self.num_blocks = loaded.cache.num_blocks
        self.block_tokens = loaded.cache.block_tokens
        self.spare_tokens = _SPARE_TOKENS
        self.lookahead_tokens = 0
        self.default_settings: Mapping[str, int] = {}
        self._model = loaded.model
        self.cache = loaded.cache
        self.batch_builder = loaded.batch_builder
        self.sampler = Sampler(loaded.model.config.vocab_size, device, grammars, eos_token_ids)
        self._prompt_scores = PromptScores()
        self._broken: set[RequestId] = set()

    @property
    def model(self) -> CausalModel:
        """The weights and the forward pass."""
        return self._model

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """Write the keys and values of the rows. Return a Sampled for rows with ``sample`` or non-finite numbers."""
        if not plan.rows:
            return []
        with translate_torch_errors():
            result = self._compute(self.batch_builder.build(plan))
            self._contain(result.broken)
        reported = (row.request.id for row in plan.rows if row.sample or row.request.id in self._broken)
        return [self._sampled(request_id, result) for request_id in reported]

    @torch.inference_mode()
    def score(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits after each of ``tokens``, (n, vocab) in float32. One pass, which overwrites the KV cache.

        Only for a runner without requests. Raises ValueError if the tokens do not fit.
        """
        if not 0 < len(tokens) <= min(self.context_window, self.num_blocks * self.block_tokens):
            raise ValueError(f"{len(tokens)} tokens do not fit a context of {self.context_window} in this cache")
        request = EngineRequest("score", tuple(tokens), SamplingParams(max_tokens=1))
        blocks = range(-(-len(tokens) // self.block_tokens))
        plan = StepPlan((Row(request, tokens, 0, blocks, (), sample=False),))
        with translate_torch_errors():
            return self._model.logits(self._model.forward(self.batch_builder.build(plan), self.cache))

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid for a grammar that this model cannot follow."""
        self.sampler.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request that has ended."""
        self._broken.discard(request_id)
        self.sampler.forget(request_id)
        self._prompt_scores.forget(request_id)

    def _sampled(self, request_id: RequestId, result: _StepResult) -> Sampled:
        if request_id in self._broken:
            return Sampled(request_id, None, finite=False)
        return result.sampled[request_id]

    def _compute(self, batch: ForwardBatch) -> _StepResult:
        hidden = self._model.forward(batch, self.cache)
        # The sum of a hidden state is NaN or infinite if any of its values is.
        is_finite = hidden.sum(dim=-1, dtype=torch.float).isfinite()
        for row, end in zip(batch.rows, batch.ends, strict=True):
            if row.scores_prompt:
                self._prompt_scores.add(row, hidden[end + 1 - len(row.tokens) : end + 1], self._model.logits)
        rows = [row for row in batch.rows if row.sample]
        if not rows:
            return _StepResult({}, self._broken_rows(batch, is_finite.tolist(), {}))
        positions = sample_positions(rows)
        ends = {row.request.id: end for row, end in zip(batch.rows, batch.ends, strict=True)}
        picked = self.batch_builder.send(
            [ends[each.row.request.id] - len(each.row.drafts) + each.num_drafts for each in positions]
        )
        choice = self.sampler.sample(self._model.logits(hidden[picked]), positions)
        # In one transfer, because each read by the host waits for the device.
        values = torch.cat((choice.tokens, choice.is_sound, is_finite)).tolist()
        tokens, is_sound = values[: len(positions)], values[len(positions) : 2 * len(positions)]
        sampled = self._prompt_scores.given_to(_by_request(rows, tokens, is_sound, choice))
        broken = self._broken_rows(batch, values[2 * len(positions) :], sampled)
        return _StepResult(sampled, broken)

    @staticmethod
    def _broken_rows(
        batch: ForwardBatch, is_finite: Sequence[int], sampled: Mapping[RequestId, Sampled]
    ) -> tuple[Row, ...]:
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
            self._clear(row)

    def _clear(self, row: Row) -> None:
        # Only blocks that this step wrote: earlier ones are finite and may be shared.
        first = row.start // self.block_tokens
        self.cache.clear(self.batch_builder.send(row.blocks[first:]))


def _by_request(
    rows: Sequence[Row], tokens: Sequence[int], is_sound: Sequence[int], choice: Choice
) -> dict[RequestId, Sampled]:
    """Split the tokens of the sample positions into rows, each up to its first rejected draft."""
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
