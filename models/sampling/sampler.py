"""The sampler: from logits to the next token of each position, for the whole batch at once.

A token depends on its logits, its request and the number of tokens so far, never on the rest of the batch. Order: the
bias of tokens, repetition, presence and frequency penalties, the end tokens that come too early and the tokens that end
a banned sequence, the grammar mask, the forced tokens of reasoning, then the most likely token, or a random one by
temperature, min-p, top-k and top-p. A greedy request without any of those before the last reads the logits only once.

The n-th token of a seeded request uses a random number that depends only on the seed and n. The number selects from the
distribution of the row by inverse transform sampling. So a token never depends on earlier draws either.

On a CPU the vocabulary is searched in chunks: reduce each chunk to one number, choose a chunk, and search only in it.
A plain sum or maximum is about ten times as fast there as a cumulative sum or a maximum with its index.

    | 512 | 512 | ... | rest |   ── reduce ──▶   (rows, chunks)   ── choose ──▶   one chunk of each row, (rows, 512)
"""

import hashlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from headrace.models.engine.requests import EngineRequest, RequestId, SampledLogprobs, SamplingParams
from headrace.models.sampling.grammar_masks import GrammarMasks
from headrace.models.sampling.penalties import Penalties
from headrace.models.sampling.reasoning_bounds import ReasoningBounds
from headrace.models.sampling.sample_positions import SamplePosition
from headrace.models.sampling.token_rules import add_bias_, forbid_banned_, forbid_early_ends_
from headrace.prompts.grammar import Grammars

CHUNK = 512
_CANDIDATES = (128, 1024)  # on the CPU, top-k and top-p try this many tokens before the whole vocabulary
_BITS = 53  # the precision of a float64


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

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        grammars: Grammars | None = None,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """``eos_token_ids`` are not sampled before the ``min_tokens`` of a request."""
        self._device = device
        self._eos = eos_token_ids
        self._penalties = Penalties(device)
        self._masks = GrammarMasks(grammars, vocab_size, device)
        self._reasoning = ReasoningBounds(eos_token_ids)

    def __len__(self) -> int:
        """Return the number of states that are kept."""
        return len(self._penalties) + len(self._masks) + len(self._reasoning)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid if the grammar of the request cannot be followed. Thread-safe."""
        self._masks.check(request)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self._penalties.forget(request_id)
        self._masks.forget(request_id)
        self._reasoning.forget(request_id)

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
        """Apply all but the random choice to ``logits``, and choose these tokens again. Return the stuck positions."""
        ruled = _where(positions, lambda each: each.has_token_rules)
        if ruled:
            add_bias_(logits, ruled, [positions[index] for index in ruled])
        penalised = _where(positions, lambda each: each.has_penalties)
        if penalised:
            self._penalties.apply_(logits, penalised, [positions[index] for index in penalised])
        if ruled:
            forbid_early_ends_(logits, ruled, [positions[index] for index in ruled], self._eos)
            forbid_banned_(logits, ruled, [positions[index] for index in ruled])
        begins = self._reasoning.answer_starts(positions)
        masked = [index for index, begin in enumerate(begins) if begin is not None and _has_grammar(positions[index])]
        is_open: list[bool] = []
        if masked:
            starts = [begins[index] or 0 for index in masked]
            logits[masked], is_open = self._masks.apply(logits[masked], [positions[index] for index in masked], starts)
        reasoning = [index for index, begin in enumerate(begins) if begin is None]
        if reasoning:
            self._reasoning.restrict_(logits, reasoning, [positions[index] for index in reasoning])
        stuck = {index for index, may_go_on in zip(masked, is_open, strict=True) if not may_go_on}
        changed = sorted({*ruled, *penalised, *masked, *reasoning})
        if changed:
            highest, tokens[changed] = highest_of(rows_of(logits, changed))
            if any(positions[index].row.request.banned for index in ruled):
                # Bans may leave nothing of what a grammar allows.
                is_empty = (highest == -torch.inf).tolist()
                stuck |= {index for index, empty in zip(changed, is_empty, strict=True) if empty}
        return frozenset(stuck)


def _has_grammar(position: SamplePosition) -> bool:
    return position.row.request.sampling.grammar is not None


def _where(positions: Sequence[SamplePosition], asks: Callable[[SamplingParams], bool]) -> list[int]:
    return [index for index, position in enumerate(positions) if asks(position.row.request.sampling)]


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


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor, counts: Sequence[int]) -> list[SampledLogprobs]:
    """Return the logprobs of the token and the ``counts`` most likely ones of each row. Logits are (rows, vocab).

    They are the log-softmax of the logits of the model, before penalties, masks, temperature, top-k and top-p, as
    vLLM's default ("raw") and OpenAI report them.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    chosen = (logits.gather(1, tokens[:, None]) - log_total)[:, 0].tolist()
    top = logits.topk(min(max(counts), logits.shape[1]), dim=-1)
    ids, values = top.indices.tolist(), (top.values - log_total).tolist()
    return [
        SampledLogprobs(logprob, tuple(row_ids[:count]), tuple(row_values[:count]))
        for logprob, row_ids, row_values, count in zip(chosen, ids, values, counts, strict=True)
    ]


def _draw(logits: torch.Tensor, positions: Sequence[SamplePosition]) -> torch.Tensor:
    params = [position.row.request.sampling for position in positions]
    return draw(logits, params, [number(position.row.request.sampling.seed, position.number) for position in positions])


def uniform(seed: int, n: int) -> float:
    """Return the n-th random number of a seed in [0, 1): a hash of both."""
    digest = hashlib.blake2b(seed.to_bytes(8, "big") + n.to_bytes(8, "big"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)


def number(seed: int | None, n: int) -> float:
    """Return the n-th random number of a seed, or an unseeded one."""
    return secrets.randbits(_BITS) / (1 << _BITS) if seed is None else uniform(seed, n)


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Return one value a row, (rows, 1), with the type and device of ``like``."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Sample one token a row, (rows,), with the temperature, min-p, top-k, top-p and random number of the row."""
    temperature = column([each.temperature for each in params], logits)
    # Subtract the maximum first, so that a tiny temperature does not overflow.
    weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature).exp_()
    if any(each.min_p for each in params):
        # The most likely token has weight 1. As in vLLM, before top-k and top-p.
        weights.masked_fill_(weights < column([each.min_p or 0.0 for each in params], logits), 0)
    by_chunk = reduced(weights, sum_of)
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    is_cut = [each.top_k > 0 or each.top_p < 1 for each in params]
    whole = [index for index, cut in enumerate(is_cut) if not cut]
    if whole:
        tokens[whole] = pick_whole(rows_of(weights, whole), rows_of(by_chunk, whole), numbers[whole])
    some = [index for index, cut in enumerate(is_cut) if cut]
    if some:
        totals = by_chunk[some].sum(dim=-1, keepdim=True)
        tokens[some] = _draw_cut(
            rows_of(weights, some), totals, [params[index] for index in some], numbers[some], _sizes(logits)
        )
    return tokens


def _sizes(logits: torch.Tensor) -> Sequence[int]:
    """Return the numbers of most likely tokens to try, in order.

    A GPU sorts the whole vocabulary, because a check would wait for the device.
    """
    vocab = logits.shape[1]
    return (*(size for size in _CANDIDATES if size < vocab), vocab) if logits.device.type == "cpu" else (vocab,)


def sum_of(values: torch.Tensor) -> torch.Tensor:
    """Sum a chunk in float32: five times as fast as float64, and the rounding error does not matter here."""
    return values.sum(dim=-1).double()


def pick(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the index in each row where the cumulative share of ``weights`` exceeds the number of the row."""
    running = weights.cumsum(dim=-1)
    return _passed(running, numbers * running[:, -1])


def _passed(running: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the first index in each row of cumulative sums that exceeds its target, (rows,)."""
    total = running[:, -1:].contiguous()
    index = torch.searchsorted(running, targets[:, None], right=True)
    # Rounding may reach the total, and all later tokens have no weight. A row of NaN has no total.
    last = torch.searchsorted(running, total).clamp_(max=running.shape[1] - 1)
    return torch.minimum(index, last)[:, 0]


def pick_whole(weights: torch.Tensor, by_chunk: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As ``pick``, from the whole vocabulary in two steps: the chunk, then the token in it."""
    running = by_chunk.cumsum(dim=-1)
    targets = numbers * running[:, -1]
    chunk = _passed(running, targets)
    before = running.gather(1, chunk[:, None]) - by_chunk.gather(1, chunk[:, None])
    rest = (targets - before[:, 0]).clamp_(min=0)
    index = _passed(inside(weights, chunk, 0).double().cumsum(dim=-1), rest)
    return (chunk * CHUNK + index).clamp_(max=weights.shape[1] - 1)  # a row of NaN may give any index


def _draw_cut(
    weights: torch.Tensor,
    totals: torch.Tensor,
    params: Sequence[SamplingParams],
    numbers: torch.Tensor,
    sizes: Sequence[int],
) -> torch.Tensor:
    """Sample from the ``sizes[0]`` most likely tokens of each row. Rows that need more tokens get the next size."""
    size = sizes[0]
    top, ids = weights.topk(size, dim=-1)
    vocab = weights.shape[1]
    k = column([each.top_k or vocab for each in params], numbers)
    share = column([each.top_p for each in params], numbers)
    kept, is_enough = kept_weights(top.double(), totals, k, share, vocab)
    tokens = ids.gather(1, pick(kept, numbers)[:, None])[:, 0]
    if len(sizes) > 1 and not bool(is_enough.all()):
        rest = [index for index, enough in enumerate(is_enough.tolist()) if not enough]
        tokens[rest] = _draw_cut(
            weights[rest], totals[rest], [params[index] for index in rest], numbers[rest], sizes[1:]
        )
    return tokens


def kept_weights(
    top: torch.Tensor, totals: torch.Tensor, k: torch.Tensor, share: torch.Tensor, vocab: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply top-k, then top-p, to ``top`` (sorted weights). Return the weights, and if ``top`` had enough tokens.

    A token stays if it is one of the ``k`` (rows, 1) most likely and the share of the tokens before it is below
    ``share`` (rows, 1), which is top-p. ``totals`` (rows, 1) are the sums over the whole vocabulary.
    """
    size = top.shape[1]
    top = top.masked_fill(torch.arange(size, device=top.device) >= k, 0)
    # Normalised over the tokens that top-k keeps.
    weights = top / torch.where(k <= size, top.sum(dim=-1, keepdim=True), totals)
    running = weights.cumsum(dim=-1)
    kept = running - weights < share
    is_enough = (k[:, 0] <= size) | (k[:, 0] >= vocab) & (running[:, -1] >= share[:, 0])
    return weights * kept, is_enough


def reduced(values: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Reduce each chunk of values (rows, vocab) with ``reduce`` over the last dimension. Return (rows, chunks)."""
    rows, vocab = values.shape
    whole = vocab - vocab % CHUNK
    parts = [reduce(values[:, :whole].view(rows, -1, CHUNK))] if whole else []
    if whole < vocab:
        parts.append(reduce(values[:, None, whole:]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def inside(values: torch.Tensor, chunk: torch.Tensor, filler: float) -> torch.Tensor:
    """Return the values in ``chunk`` (rows,) of each row, (rows, CHUNK), with ``filler`` beyond the vocabulary."""
    members = chunk[:, None] * CHUNK + torch.arange(CHUNK, device=values.device)
    vocab = values.shape[1]
    found = values.gather(1, members.clamp(max=vocab - 1))
    return found if vocab % CHUNK == 0 else found.masked_fill_(members >= vocab, filler)


def rows_of(values: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Return the rows ``indices``. ``indices`` must be sorted; if it has all rows, nothing is copied."""
    return values if len(indices) == len(values) else values[indices]
