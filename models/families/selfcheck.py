"""The last word on whether an architecture runs rightly over the paged cache: its own numbers beside ours.

A short text goes through the original at once, and through the paged pass in chunks and single tokens beside another
text. What the probe cannot see in the code (positions that are ignored, a state of its own) is a difference here.
"""

from collections.abc import Sequence

import torch

from models.engine.requests import EngineRequest, SamplingParams
from models.engine.runner import Row, StepPlan
from models.families.generic import GenericModel
from models.tensors.batch import Batch, BatchBuilder
from models.tensors.kv_cache import KvCache
from store.errors import ModelLoadError

_BLOCK_TOKENS = 4
_STEPS = ((5, 7), (9, 1), (1, 1), (1, 6), (8, 1))
"""How many tokens of the two texts enter in each step."""

_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""The greatest difference, relative to the logits' own spread, that rounding explains."""


@torch.inference_mode()
def page_checked(model: GenericModel, *, dtype: torch.dtype, device: torch.device) -> GenericModel:
    """Put the paged attention into a model and return it.

    Raises ModelLoadError if its numbers are not the original's any more.
    """
    lengths = [sum(step[n] for step in _STEPS) for n in (0, 1)]
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(model.config.vocab_size, (length,), generator=draw).tolist() for length in lengths]
    expected = [model.original_logits(torch.tensor(text, device=device)) for text in texts]
    model.page()
    try:
        found = _paged_logits(model, texts, dtype, device)
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ModelLoadError(f"this architecture does not run over the paged cache: {error}") from error
    for ours, theirs in zip(found, expected, strict=True):
        spread = theirs - theirs.mean(dim=-1, keepdim=True)
        off = ((ours - theirs).norm() / spread.norm()).item()
        if not off < _TOLERANCE[dtype]:  # NaN is no agreement
            raise ModelLoadError(
                f"this architecture cannot run over the paged cache: its logits are {off:.1%} off the original's"
            )
    return model


def _paged_logits(
    model: GenericModel, texts: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Return what the paged pass says after each token of the texts, which enter as ``_STEPS`` says."""
    config = model.config
    width = -(-max(map(len, texts)) // _BLOCK_TOKENS)
    cache = KvCache(
        num_layers=config.num_layers,
        num_blocks=len(texts) * width,
        block_tokens=_BLOCK_TOKENS,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=device,
    )
    builder = BatchBuilder(block_tokens=_BLOCK_TOKENS, spans=config.windows, device=device)
    requests = [EngineRequest(str(n), tuple(text), SamplingParams(max_tokens=1)) for n, text in enumerate(texts)]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    for sizes in _STEPS:
        rows = []
        for n, size in enumerate(sizes):
            blocks = range(n, len(texts) * width, len(texts))
            entering = texts[n][done[n] : done[n] + size]
            rows.append(Row(requests[n], entering, done[n], blocks, (), sample=False))
            done[n] += size
        batch = builder.build(StepPlan(tuple(rows)))
        _share_out(model.logits(model.forward(batch, cache)), batch, found)
    return [torch.cat(parts) for parts in found]


def _share_out(logits: torch.Tensor, batch: Batch, found: list[list[torch.Tensor]]) -> None:
    """Give each text the rows of a pass that are its own."""
    for row, end in zip(batch.rows, batch.ends, strict=True):
        found[int(str(row.request.id))].append(logits[end + 1 - len(row.tokens) : end + 1])
