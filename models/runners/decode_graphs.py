"""Decode passes that were recorded once, as CUDA graphs for fixed numbers of rows, and are replayed.

A decode pass of a small model takes the host longer to give to the GPU than the GPU needs for it. A replay is one call.
A pass with fewer rows than a graph is filled up with copies of its last row, which write the same numbers to the same
place. Only for attention that follows block tables: the shapes of gathered contexts differ from pass to pass.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from headrace.models.families.model import ModelWithCache
from headrace.models.tensors.block_table import BlockTableBatch

log = logging.getLogger(__name__)

_SMALL = (1, 2, 4, 8)
_STEP = 8

Replay = Callable[[], None]
Record = Callable[[Callable[[], torch.Tensor]], tuple[Replay, torch.Tensor]]
"""Records a computation. Returns what runs it again, and the tensor that holds its result then."""


def graph_sizes(most: int) -> list[int]:
    """Return the numbers of rows for which passes are recorded: small ones, then every eighth, up to ``most``."""
    sizes = {size for size in _SMALL if size < most} | set(range(2 * _STEP, most, _STEP))
    return sorted(sizes | {most})


class CudaRecorder:
    """Records computations as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None  # a handle of torch

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        """Run ``compute`` once on a stream of its own, so that libraries are initialised, and record it."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch declares none
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        self._pool = graph.pool()
        return graph.replay, result


class DecodeGraphs:
    """Recorded passes of one model and cache, for each of ``sizes``. Contexts are at most ``context`` tokens."""

    @torch.inference_mode()
    def __init__(
        self, loaded: ModelWithCache, sizes: Sequence[int], *, context: int, device: torch.device, record: Record
    ) -> None:
        most, width = max(sizes), -(-context // loaded.cache.block_tokens)
        longs = [torch.zeros(most, dtype=torch.long, device=device) for _ in range(3)]
        tokens, positions, slots = longs
        self._inputs = BlockTableBatch(
            rows=(),
            ends=(),
            tokens=tokens,
            positions=positions,
            slots=slots,
            query_starts=torch.arange(most + 1, dtype=torch.int32, device=device),
            context_lengths=torch.ones(most, dtype=torch.int32, device=device),
            block_table=torch.zeros(most, width, dtype=torch.int32, device=device),
            max_query=1,
            max_context=width * loaded.cache.block_tokens,
        )
        self._recorded: dict[int, tuple[Replay, torch.Tensor]] = {}
        # The largest first: the others find their memory in its pool.
        for size in sorted(sizes, reverse=True):
            part = self._first(size)
            self._recorded[size] = record(lambda part=part: loaded.model.forward(part, loaded.cache))  # type: ignore[misc]  # mypy infers no default argument
        # Recording has written to block 0.
        loaded.cache.clear(torch.zeros(1, dtype=torch.long, device=device))
        log.info("decode_graphs_recorded sizes=%d most_rows=%d", len(sizes), most)

    def forward(self, batch: object) -> torch.Tensor | None:
        """Return the hidden states of a decode pass, (n, hidden_size). They are valid until the next call.

        None for a pass that was not recorded.
        """
        if not isinstance(batch, BlockTableBatch) or batch.max_query > 1:
            return None
        if any(row.request.adapter is not None for row in batch.rows):
            return None  # adapters differ from pass to pass
        count = len(batch.rows)
        size = min((size for size in self._recorded if size >= count), default=None)
        if size is None:
            return None
        self._fill(batch, count, size)
        replay, hidden = self._recorded[size]
        replay()
        return hidden[:count]

    def _first(self, size: int) -> BlockTableBatch:
        whole = self._inputs
        return replace(
            whole,
            tokens=whole.tokens[:size],
            positions=whole.positions[:size],
            slots=whole.slots[:size],
            query_starts=whole.query_starts[: size + 1],
            context_lengths=whole.context_lengths[:size],
            block_table=whole.block_table[:size],
        )

    def _fill(self, batch: BlockTableBatch, count: int, size: int) -> None:
        width = min(batch.block_table.shape[1], self._inputs.block_table.shape[1])  # the rest is padding
        pairs = (
            (self._inputs.tokens, batch.tokens),
            (self._inputs.positions, batch.positions),
            (self._inputs.slots, batch.slots),
            (self._inputs.context_lengths, batch.context_lengths),
            (self._inputs.block_table[:, :width], batch.block_table[:, :width]),
        )
        for kept, given in pairs:
            kept[:count].copy_(given, non_blocking=True)
            if count < size:
                kept[count:size].copy_(given[-1:].expand(size - count, *given.shape[1:]), non_blocking=True)
