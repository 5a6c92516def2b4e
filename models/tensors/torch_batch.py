"""The tensors of one forward pass, built once a step from the plan and used by every layer.

Rows are sorted: single tokens first, by falling context length, then prefill chunks::

    | decode group 0 | decode group 1 | ... | chunk 0 | chunk 1 | ...

Decode rows of similar context length form a group, padded to its longest. Chunks are computed one by one. Holds block
tables and masks, no weights or heads. Tensors are built on the host and copied without waiting for the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from headrace.models.engine.runner import Row, StepPlan
from headrace.models.tensors.transfer import to_device

Masks = dict[int | None, torch.Tensor | None]
"""The attention mask for each sliding window (``ModelConfig.windows``). None is the plain causal mask."""

_GROUP_SHRINK = 1.5  # a decode row starts a new group if padding would make its context this many times longer
_MAX_GROUPS = 4  # each group costs a few operations in each layer


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows ``first`` to ``last - 1`` of the pass. Blocks are (rows * width,), masks (rows, 1, 1, tokens)."""

    first: int
    last: int
    blocks: torch.Tensor
    masks: Masks


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens ``first`` to ``last - 1`` of the pass: consecutive tokens of one request, from position ``start`` on.

    ``blocks`` (width,) hold its context of ``start + last - first`` tokens; masks are (tokens, context).
    """

    first: int
    last: int
    start: int
    blocks: torch.Tensor
    masks: Masks


@dataclass(frozen=True, slots=True)
class TorchBatch:
    """The input of one pass: the rows in the order of the pass, and ``ends``, the index of the last token of each."""

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]


class TorchBatchBuilder:
    """Builds batches for one block size, device and set of sliding windows."""

    def __init__(self, *, block_tokens: int, windows: Iterable[int | None], device: torch.device) -> None:
        self._block_tokens = block_tokens
        self._windows = tuple(set(windows))
        self._device = device

    def build(self, plan: StepPlan) -> TorchBatch:
        """Return the batch of a plan."""
        singles = [row for row in plan.rows if len(row.tokens) == 1]
        singles.sort(key=lambda row: row.start, reverse=True)
        longer = [row for row in plan.rows if len(row.tokens) > 1]
        rows = (*singles, *longer)
        ends = []
        total = 0
        for row in rows:
            total += len(row.tokens)
            ends.append(total - 1)
        return TorchBatch(
            rows=rows,
            ends=tuple(ends),
            tokens=self.send([token for row in rows for token in row.tokens]),
            positions=self.send([row.start + n for row in rows for n in range(len(row.tokens))]),
            slots=self.send([slot for row in rows for slot in self._slots(row)]),
            groups=self._groups(singles),
            chunks=tuple(
                self._chunk(row, end + 1 - len(row.tokens))
                for row, end in zip(longer, ends[len(singles) :], strict=True)
            ),
        )

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return a tensor of these numbers on the device. Does not wait for the device."""
        return self._move(torch.tensor(values, dtype=torch.long))

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return to_device(tensor, self._device)

    def _slots(self, row: Row) -> list[int]:
        size = self._block_tokens
        positions = range(row.start, row.start + len(row.tokens))
        return [row.blocks[position // size] * size + position % size for position in positions]

    def _width(self, row: Row) -> int:
        """Return the number of blocks that hold the context of a row, including the tokens of this step."""
        return -(-(row.start + len(row.tokens)) // self._block_tokens)

    def _groups(self, singles: Sequence[Row]) -> tuple[DecodeGroup, ...]:
        """Split the rows, longest first, into groups, so that padding does not waste too much."""
        cuts = [0]
        for index, row in enumerate(singles):
            longest = self._width(singles[cuts[-1]])
            if longest > self._width(row) * _GROUP_SHRINK and len(cuts) < _MAX_GROUPS:
                cuts.append(index)
        pairs = zip(cuts, [*cuts[1:], len(singles)], strict=True)
        return tuple(self._group(singles[first:last], first) for first, last in pairs if last > first)

    def _group(self, rows: Sequence[Row], first: int) -> DecodeGroup:
        width = self._width(rows[0])
        blocks: list[int] = []
        for row in rows:
            own = list(row.blocks[: self._width(row)])
            # Padded with a block of the same request: a block of another request may get NaN in this step.
            blocks += own + own[:1] * (width - len(own))
        positions = torch.tensor([[row.start] for row in rows])
        context = torch.arange(width * self._block_tokens)[None]
        seen = {window: self._visible(positions, context, window)[:, None, None] for window in self._windows}
        masks: Masks = {window: self._move(mask) for window, mask in seen.items()}
        return DecodeGroup(first, first + len(rows), self.send(blocks), masks)

    def _chunk(self, row: Row, first: int) -> PrefillChunk:
        end = row.start + len(row.tokens)
        blocks = self.send(row.blocks[: self._width(row)])
        masks: Masks = {}
        for window in self._windows:
            if row.start == 0 and (window is None or end <= window):
                masks[window] = None
            else:
                positions = torch.arange(row.start, end)[:, None]
                masks[window] = self._move(self._visible(positions, torch.arange(end)[None], window))
        return PrefillChunk(first, first + len(row.tokens), row.start, blocks, masks)

    @staticmethod
    def _visible(positions: torch.Tensor, context: torch.Tensor, window: int | None) -> torch.Tensor:
        """Return True where a token at ``positions`` sees the token at ``context``: not later, and in the window."""
        seen = context <= positions
        return seen if window is None else seen & (context > positions - window)
