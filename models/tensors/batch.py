"""A step's plan as the tensors that the model's pass needs, made once a step and used by every layer.

Rows are laid out again: single tokens first, longest context first, then chunks::

    | decode group 0 | decode group 1 | ... | chunk 0 | chunk 1 | ...

Decode rows of similar context share a group, padded to its longest; chunks go one by one. Knows block tables and
masks, and nothing of weights or heads. All tensors are built on the host and sent without waiting for the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from models.engine.runner import Row, StepPlan

Masks = dict[int | None, torch.Tensor | None]
"""What attention may see, for each attention span (``LlamaConfig.windows``); None means plain causal."""

_GROUP_SHRINK = 1.5  # a decode row starts a new group when the group's padding would be this many times its context
_MAX_GROUPS = 4  # each costs a few operations a layer


@dataclass(frozen=True, slots=True)
class Group:
    """Decode rows ``first`` up to ``last`` of the pass. Blocks are (rows * width,), masks (rows, 1, 1, tokens)."""

    first: int
    last: int
    blocks: torch.Tensor
    masks: Masks


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``first`` up to ``last`` of the pass: consecutive tokens of one request, from position ``start`` on.

    ``blocks`` (width,) hold its context of ``start + last - first`` tokens; masks are (tokens, context).
    """

    first: int
    last: int
    start: int
    blocks: torch.Tensor
    masks: Masks


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass. ``rows`` are the plan's in the pass's order, and ``ends`` the index of each one's last token."""

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]


class BatchBuilder:
    """Makes batches for one cache geometry, device and set of attention spans."""

    def __init__(self, *, block_tokens: int, spans: Iterable[int | None], device: torch.device) -> None:
        self._block_tokens = block_tokens
        self._spans = tuple(set(spans))
        self._device = device

    def build(self, plan: StepPlan) -> Batch:
        """Lay out a plan's rows."""
        singles = [row for row in plan.rows if len(row.tokens) == 1]
        singles.sort(key=lambda row: row.start, reverse=True)
        longer = [row for row in plan.rows if len(row.tokens) > 1]
        rows = (*singles, *longer)
        ends = []
        total = 0
        for row in rows:
            total += len(row.tokens)
            ends.append(total - 1)
        return Batch(
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
        """Return host numbers as a tensor on the device, without waiting for it."""
        return self._move(torch.tensor(values, dtype=torch.long))

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _slots(self, row: Row) -> list[int]:
        size = self._block_tokens
        positions = range(row.start, row.start + len(row.tokens))
        return [row.blocks[position // size] * size + position % size for position in positions]

    def _width(self, row: Row) -> int:
        """How many blocks hold the row's context, this step's tokens included."""
        return -(-(row.start + len(row.tokens)) // self._block_tokens)

    def _groups(self, singles: Sequence[Row]) -> tuple[Group, ...]:
        """Cut the rows, longest first, where padding to the group's longest would waste too much."""
        cuts = [0]
        for index, row in enumerate(singles):
            longest = self._width(singles[cuts[-1]])
            if longest > self._width(row) * _GROUP_SHRINK and len(cuts) < _MAX_GROUPS:
                cuts.append(index)
        pairs = zip(cuts, [*cuts[1:], len(singles)], strict=True)
        return tuple(self._group(singles[first:last], first) for first, last in pairs if last > first)

    def _group(self, rows: Sequence[Row], first: int) -> Group:
        width = self._width(rows[0])
        blocks: list[int] = []
        for row in rows:
            own = list(row.blocks[: self._width(row)])
            # Padded with a block of its own: another request's might hold NaN in this very step.
            blocks += own + own[:1] * (width - len(own))
        positions = torch.tensor([[row.start] for row in rows])
        context = torch.arange(width * self._block_tokens)[None]
        seen = {span: self._visible(positions, context, span)[:, None, None] for span in self._spans}
        masks: Masks = {span: self._move(mask) for span, mask in seen.items()}
        return Group(first, first + len(rows), self.send(blocks), masks)

    def _chunk(self, row: Row, first: int) -> Chunk:
        end = row.start + len(row.tokens)
        blocks = self.send(row.blocks[: self._width(row)])
        masks: Masks = {}
        for span in self._spans:
            if row.start == 0 and (span is None or end <= span):
                masks[span] = None
            else:
                positions = torch.arange(row.start, end)[:, None]
                masks[span] = self._move(self._visible(positions, torch.arange(end)[None], span))
        return Chunk(first, first + len(row.tokens), row.start, blocks, masks)

    @staticmethod
    def _visible(positions: torch.Tensor, context: torch.Tensor, span: int | None) -> torch.Tensor:
        """Return True where a token at ``positions`` may see the one at ``context``: not later, not beyond its span."""
        seen = context <= positions
        return seen if span is None else seen & (context > positions - span)
