"""Encoders with a classification head on torch: one pass of transformers' own model, one row of scores an input out.

A token classifier has a row of scores for each token. Rows are padded to the longest and masked.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings, Head, read_classifier
from headrace.features.encoders.torch_encoder import padded
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.models.runners.encoder import finite_bytes, read_model
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.store.settings import Settings

_TYPED_FAMILIES = ("albert", "bert", "deberta", "deberta-v2", "electra")
"""Those that are told for each token which text of the pair it is of; the tokenizers of the others do not mark it."""

ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SIGMOID: torch.sigmoid,
    Activation.SOFTMAX: lambda numbers: numbers.softmax(-1),
    Activation.IDENTITY: lambda numbers: numbers,
}
"""By the names in ``features.encoders.classifier_folder``; over the last axis."""
_AUTO = {Head.SEQUENCE: AutoModelForSequenceClassification, Head.TOKENS: AutoModelForTokenClassification}


class TorchClassifier:
    """Classifies with one model on one device. A request's options are the token type ids of each input."""

    def __init__(self, model: Any, settings: ClassifierSettings, device: torch.device) -> None:
        self.context_window = settings.context_window
        self.model = model
        self._is_per_token = settings.head is Head.TOKENS
        self._activation = ACTIVATIONS[settings.activation]
        self._device = device
        self._pad_id = int(model.config.pad_token_id or 0)
        self._has_types = model.config.model_type in _TYPED_FAMILIES

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's scores as little-endian float32, None where one or its logit is not finite.

        They are one for each label. Of a token classifier they are those of the first token, then of the next.
        """
        with translate_torch_errors():
            ids, mask = padded([row.tokens for row in rows], self._pad_id, self._device)
            types: dict[str, torch.Tensor] = {}
            if self._has_types:
                types["token_type_ids"], _ = padded([row.options[row.index] for row in rows], 0, self._device)
            numbers = self.model(input_ids=ids, attention_mask=mask, **types).logits.float()
            scores = self._activation(numbers)
            return finite_bytes(self._of_rows(scores.cpu(), rows), self._of_rows(numbers.cpu(), rows))

    def _of_rows(self, numbers: torch.Tensor, rows: Sequence[EncodeRow]) -> Iterator[torch.Tensor]:
        for own, row in zip(numbers, rows, strict=True):
            yield own[: len(row.tokens)].flatten() if self._is_per_token else own


def classifier_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchClassifier:
    """Return a classifier for a model folder. ``dtype`` goes before the setting; ``auto`` is float32.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    found = read_classifier(small_files(folder))
    model, device = read_model(_AUTO[found.head], folder, settings, dtype=dtype)
    return TorchClassifier(model, found, device)
