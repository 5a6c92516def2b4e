"""Which tokens the grammars of a batch allow next, as masks over its logits.

Keeps where each request stands in its grammar until it is forgotten; what is lost of that is made again from the
request and its output. A grammar is compiled when its request is checked, on the thread that asks: the engine's thread
finds the matcher made.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from models.engine.requests import EngineRequest, RequestId, RequestInvalid
from models.sampling.sample_positions import Place
from prompts.grammar import Grammars, Matcher
from store.errors import InvalidRequest

_MOST_CHECKED = 4096
"""Of requests that were checked and have not begun; one that is never submitted leaves its matcher here."""


class GrammarMasks:
    """Masks for one model's vocabulary. ``grammars`` is None for a model without a tokenizer, which follows none."""

    def __init__(self, grammars: Grammars | None, vocab_size: int, device: torch.device) -> None:
        self._grammars = grammars
        self._everything = bytes([255]) * (-(-vocab_size // 32) * 4)
        self._device = device
        self._matchers: dict[RequestId, Matcher] = {}
        self._checked: OrderedDict[RequestId, Matcher] = OrderedDict()

    def __len__(self) -> int:
        return len(self._matchers)

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid if the request's grammar cannot be followed. Any thread may ask."""
        if request.sampling.grammar is None:
            return
        if request.sampling.ignore_eos:
            raise RequestInvalid("an answer that follows a grammar ends with it: ignore_eos cannot be asked for too")
        try:
            self._checked[request.id] = self._begin(request)
        except InvalidRequest as error:
            raise RequestInvalid(error.message) from error
        while len(self._checked) > _MOST_CHECKED:
            self._checked.popitem(last=False)

    def forget(self, request_id: RequestId) -> None:
        """Drop what is kept for a request."""
        self._matchers.pop(request_id, None)
        self._checked.pop(request_id, None)

    def apply(self, logits: torch.Tensor, places: Sequence[Place]) -> tuple[torch.Tensor, list[bool]]:
        """Return ``logits`` (places, vocab) without the tokens that may not come, and for each place if any may.

        The places of a row stand side by side. Those after a draft that may not come are left as they are.
        """
        masks: list[bytes] = []
        is_open: list[bool] = []
        for place in places:
            if place.num_drafts == 0:
                matcher = self._matcher(place)
                row_masks = matcher.masks(place.row.drafts)
            masks.append(row_masks[place.num_drafts] if place.num_drafts < len(row_masks) else self._everything)
            is_open.append(not matcher.is_stuck)
        return logits.masked_fill(~self._unpacked(masks)[:, : logits.shape[1]], -torch.inf), is_open

    def _matcher(self, place: Place) -> Matcher:
        request = place.row.request
        matcher = self._matchers.get(request.id)
        if matcher is None:
            matcher = self._checked.pop(request.id, None) or self._begin(request)
            self._matchers[request.id] = matcher
        matcher.follow(place.row.output)
        return matcher

    def _begin(self, request: EngineRequest) -> Matcher:
        grammar = request.sampling.grammar
        if self._grammars is None or grammar is None:
            raise RequestInvalid("this model has no tokenizer.json, so it cannot follow a grammar")
        return self._grammars.matcher(grammar.kind, grammar.text)

    def _unpacked(self, masks: Sequence[bytes]) -> torch.Tensor:
        """Return (masks, 32 times words) truth values. By hand, because llguidance's own way compiles for seconds."""
        words = torch.frombuffer(bytearray(b"".join(masks)), dtype=torch.int32).view(len(masks), -1)
        bits = torch.arange(32, dtype=torch.int32, device=self._device)
        return ((words.to(self._device)[:, :, None] >> bits) & 1).bool().flatten(1)
