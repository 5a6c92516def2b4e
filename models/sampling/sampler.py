"""The sampler: from logits to the next token of each position, for the whole batch at once.

A token depends on its logits, its request and the number of tokens so far, never on the rest of the batch. Order:
repetition, presence and frequency penalties, then the grammar mask, then the most likely token, or a random one by
temperature, top-k and top-p. A greedy request without penalties and grammar reads the logits only once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.engine.requests import EngineRequest, RequestId, SampledLogprobs, SamplingParams
from models.sampling.draws import draw, number
from models.sampling.grammar_masks import GrammarMasks
from models.sampling.logprobs import logprobs_of
from models.sampling.penalties import Penalties
from models.sampling.sample_positions import SamplePosition
from models.sampling.vocabulary_chunks import CHUNK, inside, reduced, rows_of
from prompts.grammar import Grammars


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen tokens, (positions,). A token is valid only where ``is_sound``: no NaN or infinity in its logits.

    ``logprobs`` is by index of the position. ``stuck`` has the indices where the grammar allows no token.
    """

    tokens: torch.Tensor
    is_sound: torch.Tensor
    logprobs: Mapping[int, SampledLogprobs]
    stuck: frozenset[int]


class Sampler:
    """Chooses tokens. Keeps the penalty and grammar state of a request until ``forget``."""

    def __init__(self, vocab_size: int, device: torch.device, grammars: Grammars | None = None) -> None:
        self._device = device
        self._penalties = Penalties(device)
        self._masks = GrammarMasks(grammars, vocab_size, device)

    def __len__(self) -> int:
        """Return the number of states that are kept."""
        return len(self._penalties) + len(self._masks)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid if the grammar of the request cannot be followed. Thread-safe."""
        self._masks.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self._penalties.forget(request_id)
        self._masks.forget(request_id)

    def sample(self, logits: torch.Tensor, positions: Sequence[SamplePosition]) -> Choice:
        """Choose tokens from float32 ``logits`` (positions, vocab), which this may change.

        Logits are sound if their maximum is finite. NaN anywhere makes the maximum NaN. Minus infinity is allowed: the
        model rules out that token.
        """
        highest, tokens = highest_of(logits)
        asking = _where(positions, lambda each: each.logprobs is not None)
        raw = logits[asking] if asking else logits
        stuck = self._restrict(logits, tokens, positions)
        drawn = _where(positions, lambda each: each.temperature > 0)
        if drawn:
            picked = torch.tensor(drawn, device=self._device)
            tokens[picked] = _draw(rows_of(logits, drawn), [positions[index] for index in drawn])
        counts = [positions[index].row.request.sampling.logprobs or 0 for index in asking]
        found = logprobs_of(raw, tokens[asking], counts) if asking else []
        return Choice(tokens, highest.isfinite(), dict(zip(asking, found, strict=True)), stuck)

    def _restrict(
        self, logits: torch.Tensor, tokens: torch.Tensor, positions: Sequence[SamplePosition]
    ) -> frozenset[int]:
        """Apply penalties and grammars to ``logits``, and choose these tokens again. Return the stuck positions."""
        penalised = _where(positions, lambda each: each.has_penalties)
        if penalised:
            self._penalties.apply_(logits, penalised, [positions[index] for index in penalised])
        masked = _where(positions, lambda each: each.grammar is not None)
        is_open: list[bool] = []
        if masked:
            logits[masked], is_open = self._masks.apply(logits[masked], [positions[index] for index in masked])
        changed = sorted({*penalised, *masked})
        if changed:
            tokens[changed] = highest_of(rows_of(logits, changed))[1]
        return frozenset(index for index, may_go_on in zip(masked, is_open, strict=True) if not may_go_on)


def _where(positions: Sequence[SamplePosition], asks: Callable[[SamplingParams], bool]) -> list[int]:
    return [index for index, position in enumerate(positions) if asks(position.row.request.sampling)]


def _draw(logits: torch.Tensor, positions: Sequence[SamplePosition]) -> torch.Tensor:
    params = [position.row.request.sampling for position in positions]
    return draw(logits, params, [number(position.row.request.sampling.seed, position.number) for position in positions])


def highest_of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maximum of each row, NaN if the row has one, and the first token that has it, both (rows,).

    On the CPU, a maximum with its index takes ten times as long as without. So the index is searched in one chunk only.
    """
    if logits.device.type != "cpu" or logits.shape[1] < 2 * CHUNK:
        highest, tokens = logits.max(dim=-1)
        return highest, tokens
    highest, chunk = reduced(logits, _amax).max(dim=-1)
    return highest, chunk * CHUNK + inside(logits, chunk, -torch.inf).argmax(dim=-1)


def _amax(values: torch.Tensor) -> torch.Tensor:
    return values.amax(dim=-1)
