"""From logits to the next token of each place, for the whole batch at once.

A token depends on its logits, its request and how many tokens that has, never on its batch mates. Order: repetition,
presence and frequency penalties, then what the grammar allows, then the likeliest token, or a draw by temperature,
top-k and top-p. Nothing reads the vocabulary twice for a request that is greedy and has neither penalties nor grammar.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from models.engine.requests import EngineRequest, RequestId, SampledLogprobs, SamplingParams
from models.sampling.draws import draw, number
from models.sampling.grammar_masks import GrammarMasks
from models.sampling.logprobs import logprobs_of
from models.sampling.penalties import Penalties
from models.sampling.sample_positions import Place
from models.sampling.vocabulary_chunks import CHUNK, inside, reduced, rows_of
from prompts.grammar import Grammars


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token of each place, (places,), and whether its logits were sound; without that the token means none.

    By index of the place: ``logprobs`` for the requests that ask, and ``stuck`` where the grammar allows no token.
    """

    tokens: torch.Tensor
    is_sound: torch.Tensor
    logprobs: Mapping[int, SampledLogprobs]
    stuck: frozenset[int]


class Sampler:
    """Chooses tokens. Keeps what penalties and grammars need to know of a request until it is forgotten."""

    def __init__(self, vocab_size: int, device: torch.device, grammars: Grammars | None = None) -> None:
        self._device = device
        self._penalties = Penalties(device)
        self._masks = GrammarMasks(grammars, vocab_size, device)

    def __len__(self) -> int:
        """Of how many requests something is kept, at most."""
        return len(self._penalties) + len(self._masks)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid for a request whose tokens cannot be chosen as it asks. Any thread may ask."""
        self._masks.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is kept for a request."""
        self._penalties.forget(request_id)
        self._masks.forget(request_id)

    def sample(self, logits: torch.Tensor, places: Sequence[Place]) -> Choice:
        """Choose from the model's float32 ``logits`` (places, vocab), which may be changed.

        They are sound if the highest is a finite number: a NaN anywhere is passed on by the maximum, and a single minus
        infinity is a token that the model rules out.
        """
        highest, tokens = highest_of(logits)
        asking = _where(places, lambda each: each.logprobs is not None)
        raw = logits[asking] if asking else logits
        stuck = self._restrict(logits, tokens, places)
        drawn = _where(places, lambda each: each.temperature > 0)
        if drawn:
            picked = torch.tensor(drawn, device=self._device)
            tokens[picked] = _draw(rows_of(logits, drawn), [places[index] for index in drawn])
        counts = [places[index].row.request.sampling.logprobs or 0 for index in asking]
        found = logprobs_of(raw, tokens[asking], counts) if asking else []
        return Choice(tokens, highest.isfinite(), dict(zip(asking, found, strict=True)), stuck)

    def _restrict(self, logits: torch.Tensor, tokens: torch.Tensor, places: Sequence[Place]) -> frozenset[int]:
        """Apply penalties and grammars to ``logits``, and choose there again; return the places that are stuck."""
        penalised = _where(places, lambda each: each.has_penalties)
        if penalised:
            self._penalties.apply_(logits, penalised, [places[index] for index in penalised])
        masked = _where(places, lambda each: each.grammar is not None)
        is_open: list[bool] = []
        if masked:
            logits[masked], is_open = self._masks.apply(logits[masked], [places[index] for index in masked])
        changed = sorted({*penalised, *masked})
        if changed:
            tokens[changed] = highest_of(rows_of(logits, changed))[1]
        return frozenset(index for index, may_go_on in zip(masked, is_open, strict=True) if not may_go_on)


def _where(places: Sequence[Place], asks: Callable[[SamplingParams], bool]) -> list[int]:
    return [index for index, place in enumerate(places) if asks(place.row.request.sampling)]


def _draw(logits: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
    params = [place.row.request.sampling for place in places]
    return draw(logits, params, [number(place.row.request.sampling.seed, place.number) for place in places])


def highest_of(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest value of each row, NaN if there is one, and the first token that has it, both (rows,).

    On the CPU a maximum with its index is an order slower than one without, so the index is looked for in the one
    chunk that holds the maximum.
    """
    if logits.device.type != "cpu" or logits.shape[1] < 2 * CHUNK:
        highest, tokens = logits.max(dim=-1)
        return highest, tokens
    highest, chunk = reduced(logits, _amax).max(dim=-1)
    return highest, chunk * CHUNK + inside(logits, chunk, -torch.inf).argmax(dim=-1)


def _amax(values: torch.Tensor) -> torch.Tensor:
    return values.amax(dim=-1)
