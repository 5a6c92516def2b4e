"""The tensors of a pass whose attention follows block tables: all rows in one call, no gathering and no padding.

    tokens         | row 0 | row 1    | row 2 |          query_starts = 0, 1, 4, 5
    block_table    | 7 3   | 9 2 5    | 1     |          context_lengths = 20, 35, 4

Rows are in the order of the plan. Everything is built on the host and copied in one piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.models.engine.runner import Row, StepPlan
from headrace.models.tensors.transfer import to_device


@dataclass(frozen=True, slots=True)
class BlockTableBatch:
    """The input of one pass, and ``ends``, the index of the last token of each row.

    ``tokens``, ``positions`` and ``slots`` are (n,) long. The others are int32, as the kernels want them:
    ``query_starts`` (rows + 1,), ``context_lengths`` (rows,) including the tokens of this pass, and ``block_table``
    (rows, width). No row has more tokens than ``max_query``, and ``max_context`` is what the table can hold, in tokens.
    Both bounds are powers of two (``max_context`` times the block size), because cuDNN keeps a plan for each shape.
    """

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    context_lengths: torch.Tensor
    block_table: torch.Tensor
    max_query: int
    max_context: int


class BlockTableBatchBuilder:
    """Builds batches for one block size and device."""

    def __init__(self, *, block_tokens: int, device: torch.device) -> None:
        self._block_tokens = block_tokens
        self._device = device

    def build(self, plan: StepPlan) -> BlockTableBatch:
        """Return the batch of a plan."""
        size, rows = self._block_tokens, plan.rows
        positions = [range(row.start, row.start + len(row.tokens)) for row in rows]
        starts = [0]
        for row in rows:
            starts.append(starts[-1] + len(row.tokens))
        lengths = [places.stop for places in positions]
        width = _power_of_two(-(-max(lengths) // size))
        numbers = [
            *(token for row in rows for token in row.tokens),
            *(place for places in positions for place in places),
            *(
                row.blocks[at // size] * size + at % size
                for row, places in zip(rows, positions, strict=True)
                for at in places
            ),
            *starts,
            *lengths,
            *(block for row in rows for block in self._padded(row, width)),
        ]
        total = starts[-1]
        sent = self.send(numbers)
        tokens, positions_sent, slots, rest = torch.split(sent, [total, total, total, len(numbers) - 3 * total])
        query_starts, context_lengths, table = torch.split(rest.int(), [len(starts), len(rows), len(rows) * width])
        return BlockTableBatch(
            rows=rows,
            ends=tuple(start - 1 for start in starts[1:]),
            tokens=tokens,
            positions=positions_sent,
            slots=slots,
            query_starts=query_starts,
            context_lengths=context_lengths,
            block_table=table.view(len(rows), width),
            max_query=_power_of_two(max(map(len, positions))),
            max_context=width * size,
        )

    def send(self, values: Sequence[int]) -> torch.Tensor:
        """Return a tensor of these numbers on the device. Does not wait for the device."""
        return to_device(torch.tensor(values, dtype=torch.long), self._device)

    def _padded(self, row: Row, width: int) -> list[int]:
        own = list(row.blocks[: -(-(row.start + len(row.tokens)) // self._block_tokens)])
        # Padded with a block of the same request: a kernel may read it, and weigh it with zero.
        return own + own[:1] * (width - len(own))


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()
