"""The cross-encoder on torch: rows of pairs in, one pass of transformers' own model, one score a row out.

Rows are padded to the longest and masked. A score is one float32 number.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from models.engine.requests import EncodeRow
from models.families.model_folder import small_files
from models.runners.encoder import float32_bytes, padded, read_model
from models.runners.torch_runner import translate_torch_errors
from prompts.tasks.rerank import Activation, CrossEncoderSettings, read_settings
from store.settings import Settings

_TYPED_FAMILIES = ("albert", "bert", "electra")
"""Those that are told for each token which text of the pair it is of; the tokenizers of the others do not mark it."""


class TorchCrossEncoder:
    """Scores pairs with one model on one device. A request's options are the token type ids of each input."""

    def __init__(self, model: Any, settings: CrossEncoderSettings, device: torch.device) -> None:
        self.context_window = settings.context_window
        self._model = model
        self._activation = settings.activation
        self._device = device
        self._pad_id = int(model.config.pad_token_id or 0)
        self._has_types = model.config.model_type in _TYPED_FAMILIES

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's score as little-endian float32, None where it is not finite."""
        with translate_torch_errors():
            ids, mask = padded([row.tokens for row in rows], self._pad_id, self._device)
            types: dict[str, torch.Tensor] = {}
            if self._has_types:
                types["token_type_ids"], _ = padded([row.options[row.index] for row in rows], 0, self._device)
            numbers = self._model(input_ids=ids, attention_mask=mask, **types).logits[:, 0].float()
            scores = numbers.sigmoid() if self._activation is Activation.SIGMOID else numbers
            return [float32_bytes(score[None]) if score.isfinite() else None for score in scores.cpu()]


def cross_encoder_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchCrossEncoder:
    """Return a cross-encoder for a model folder. ``dtype`` goes before the setting; ``auto`` is float32.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    found = read_settings(small_files(folder))
    model, device = read_model(AutoModelForSequenceClassification, folder, settings, dtype=dtype)
    return TorchCrossEncoder(model, found, device)
