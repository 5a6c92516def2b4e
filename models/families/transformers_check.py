"""Checks a transformers model on the paged KV cache: compares its logits with those of the unchanged model.

The unchanged model reads a short text at once. The paged pass reads it in chunks and single tokens, in a batch with
another text. Faults that the probe cannot see in the code (ignored positions, other state) show here as a difference.
"""

from collections.abc import Sequence

import torch

from headrace.models.engine.requests import EngineRequest, SamplingParams
from headrace.models.engine.runner import Row, StepPlan
from headrace.models.families.transformers_model import TransformersModel
from headrace.models.tensors.kv_cache import KvCache
from headrace.models.tensors.torch_batch import TorchBatch, TorchBatchBuilder
from headrace.store.errors import ModelLoadError
from headrace.store.registry.engine_spec import SERVER_ADVICE

_BLOCK_TOKENS = 4
_STEPS = ((5, 7), (9, 1), (1, 1), (1, 6), (8, 1))
"""The number of tokens of the two texts in each step."""

_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""The greatest difference that rounding explains, relative to the spread of the logits."""


@torch.inference_mode()
def page_checked(model: TransformersModel, *, dtype: torch.dtype, device: torch.device) -> TransformersModel:
    """Replace the attention of a model by paged attention, and return the model.

    Raises ModelLoadError if its logits change by more than rounding.
    """
    lengths = [sum(step[n] for step in _STEPS) for n in (0, 1)]
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(model.config.vocab_size, (length,), generator=draw).tolist() for length in lengths]
    expected = [model.reference_logits(torch.tensor(text, device=device)) for text in texts]
    model.page()
    try:
        found = _paged_logits(model, texts, dtype, device)
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ModelLoadError(f"this architecture does not run over the paged cache; {SERVER_ADVICE}") from error
    for ours, theirs in zip(found, expected, strict=True):
        spread = theirs - theirs.mean(dim=-1, keepdim=True)
        off = ((ours - theirs).norm() / spread.norm()).item()
        if not off < _TOLERANCE[dtype]:  # also True for NaN
            raise ModelLoadError(
                f"this architecture cannot run over the paged cache: its logits are {off:.1%} off the original's; "
                f"{SERVER_ADVICE}"
            )
    return model


def _paged_logits(
    model: TransformersModel, texts: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Return the logits of the paged pass after each token of the texts, in the steps of ``_STEPS``."""
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
    builder = TorchBatchBuilder(block_tokens=_BLOCK_TOKENS, windows=config.windows, device=device)
    requests = [EngineRequest(str(n), tuple(text), SamplingParams(max_tokens=1)) for n, text in enumerate(texts)]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    for sizes in _STEPS:
        rows = []
        for n, size in enumerate(sizes):
            blocks = range(n, len(texts) * width, len(texts))
            tokens = texts[n][done[n] : done[n] + size]
            rows.append(Row(requests[n], tokens, done[n], blocks, (), sample=False))
            done[n] += size
        batch = builder.build(StepPlan(tuple(rows)))
        _append_logits(model.logits(model.forward(batch, cache)), batch, found)
    return [torch.cat(parts) for parts in found]


def _append_logits(logits: torch.Tensor, batch: TorchBatch, found: list[list[torch.Tensor]]) -> None:
    """Append the logits of a pass to the text that they belong to."""
    for row, end in zip(batch.rows, batch.ends, strict=True):
        found[int(str(row.request.id))].append(logits[end + 1 - len(row.tokens) : end + 1])
