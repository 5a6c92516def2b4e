"""Grammar masks: the tokens that the grammars of a batch allow next, as masks over the logits.

Keeps the matcher of each request until ``forget``. A lost matcher is built again from the request and its output.
``check`` compiles the grammar on the thread of its caller, so that the thread of the engine finds a ready matcher.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from headrace.models.engine.requests import EngineRequest, RequestId, RequestInvalid
from headrace.models.sampling.sample_positions import SamplePosition
from headrace.prompts.grammar import Grammars, Matcher
from headrace.store.errors import InvalidRequest

MAX_CHECKED = 4096
"""The most matchers of requests that were checked and have not started. A request may never be submitted."""


class GrammarMasks:
    """Masks for the vocabulary of one model. ``grammars`` is None for a model without a tokenizer: no grammar then."""

    def __init__(self, grammars: Grammars | None, vocab_size: int, device: torch.device) -> None:
        self._grammars = grammars
        self._all_allowed = bytes([255]) * (-(-vocab_size // 32) * 4)
        self._device = device
        self._matchers: dict[RequestId, Matcher] = {}
        self.checked: OrderedDict[RequestId, Matcher] = OrderedDict()

    def __len__(self) -> int:
        return len(self._matchers)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid if the grammar of the request cannot be followed. Thread-safe."""
        if request.sampling.grammar is None:
            return
        if request.sampling.ignore_eos or request.sampling.min_tokens:
            raise RequestInvalid("an answer that follows a grammar ends with it: leave out ignore_eos and min_tokens")
        try:
            self.checked[request.id] = self._begin(request)
        except InvalidRequest as error:
            raise RequestInvalid(error.message) from error
        while len(self.checked) > MAX_CHECKED:
            self.checked.popitem(last=False)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request."""
        self._matchers.pop(request_id, None)
        self.checked.pop(request_id, None)

    def apply(
        self, logits: torch.Tensor, positions: Sequence[SamplePosition], begins: Sequence[int]
    ) -> tuple[torch.Tensor, list[bool]]:
        """Mask the forbidden tokens in ``logits`` (positions, vocab). Return them, and if a position has allowed ones.

        ``begins``: for each position the number of output tokens before its grammar begins, which all are in the
        output of its row. The positions of a row are adjacent. Positions after a forbidden draft are not masked.
        """
        masks: list[bytes] = []
        is_open: list[bool] = []
        for position, begin in zip(positions, begins, strict=True):
            if position.num_drafts == 0:
                matcher = self._matcher(position, begin)
                row_masks = matcher.masks(position.row.drafts)
            masks.append(row_masks[position.num_drafts] if position.num_drafts < len(row_masks) else self._all_allowed)
            is_open.append(not matcher.is_stuck)
        return logits.masked_fill(~self._unpacked(masks)[:, : logits.shape[1]], -torch.inf), is_open

    def _matcher(self, position: SamplePosition, begin: int) -> Matcher:
        request = position.row.request
        matcher = self._matchers.get(request.id)
        if matcher is None:
            matcher = self.checked.pop(request.id, None) or self._begin(request)
            self._matchers[request.id] = matcher
        matcher.follow(position.row.output, begin)
        return matcher

    def _begin(self, request: EngineRequest) -> Matcher:
        grammar = request.sampling.grammar
        if self._grammars is None or grammar is None:
            raise RequestInvalid("this model has no tokenizer.json, so it cannot follow a grammar")
        return self._grammars.matcher(grammar.kind, grammar.text)

    def _unpacked(self, masks: Sequence[bytes]) -> torch.Tensor:
        """Return the bits of the masks, (masks, 32 * words). llguidance's own function would compile for seconds."""
        words = torch.frombuffer(bytearray(b"".join(masks)), dtype=torch.int32).view(len(masks), -1)
        bits = torch.arange(32, dtype=torch.int32, device=self._device)
        return ((words.to(self._device)[:, :, None] >> bits) & 1).bool().flatten(1)
