"""The Encoder on torch: rows of token ids in, one pass of a transformers model, one embedding a row out.

Rows are padded to the longest row and masked. ``Embedder`` gives the pooling and the normalisation.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel

from headrace.features.encoders.embed.inputs import Dense, Embedder, Pooling, read_embedder
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.models.runners.encoder import finite_bytes, read_model
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings


class TorchEncoder:
    """Computes embeddings with one model on one device."""

    def __init__(
        self, model: Any, embedder: Embedder, device: torch.device, dense: Sequence[torch.nn.Module] = ()
    ) -> None:
        self.context_window = embedder.context_window
        self.model = model
        self._embedder = embedder
        self._dense = dense
        self._device = device
        self._pad_id = int(model.config.pad_token_id or 0)

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's vector as little-endian float32, None where its numbers are not finite."""
        with translate_torch_errors():
            ids, mask = padded([row.tokens for row in rows], self._pad_id, self._device)
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            pooled = self._pool(hidden, mask)
            for dense in self._dense:
                pooled = dense(pooled)
            vectors = (self._shaped(vector, row.options) for vector, row in zip(pooled, rows, strict=True))
            return finite_bytes(vectors, (states[: len(row.tokens)] for states, row in zip(hidden, rows, strict=True)))

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (rows, width) of hidden states (rows, longest, width)."""
        if self._embedder.pooling is Pooling.CLS:
            return hidden[:, 0]
        if self._embedder.pooling is Pooling.LAST:
            return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        weights = mask[:, :, None].to(hidden.dtype)
        if self._embedder.pooling is Pooling.MAX:
            return hidden.masked_fill(weights == 0, float("-inf")).amax(1)
        # masked_fill, because 0 times a NaN or infinite hidden state of padding would not be 0.
        return hidden.masked_fill(weights == 0, 0.0).sum(1) / weights.sum(1)

    def _shaped(self, vector: torch.Tensor, dimensions: int | None) -> torch.Tensor:
        cut = vector if dimensions is None else vector[:dimensions]
        return normalize(cut, dim=0) if self._embedder.normalise else cut


def padded(inputs: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the padded values and the mask of the values that are not padding, each (rows, longest)."""
    longest = max(map(len, inputs))
    values = torch.tensor([[*tokens, *[pad_id] * (longest - len(tokens))] for tokens in inputs])
    lengths = torch.tensor([len(tokens) for tokens in inputs])
    mask = torch.arange(longest)[None] < lengths[:, None]
    return values.to(device), mask.long().to(device)


def encoder_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchEncoder:
    """Return an encoder for an unregistered model folder. ``dtype`` overrides the setting. ``auto`` is float32.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    embedder = read_embedder(small_files(folder))
    # No vector here goes through the pooler, which is for classifying: a folder may lack it.
    model, device = read_model(AutoModel, folder, settings, dtype=dtype, unused="pooler.")
    return TorchEncoder(model, embedder, device, [read_dense(folder, one, device) for one in embedder.dense])


def read_dense(folder: Path, dense: Dense, device: torch.device) -> torch.nn.Module:
    """Return a layer after the pooling, in float32.

    Raises ModelLoadError if its weights are missing, do not fit, or are not finite: a tanh would hide that.
    """
    path = folder / dense.folder / "model.safetensors"
    if not path.is_file():
        raise ModelLoadError(f"{path} is missing: the weights of a dense layer must be safetensors")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        weight = tensors["linear.weight"]
        layer = torch.nn.Linear(weight.shape[1], dense.width, bias="linear.bias" in tensors)
        layer.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in tensors.items()})
    except Exception as error:  # the library raises errors of any type
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ModelLoadError(f"{path} has weights that are not finite")
    layers = (layer, torch.nn.Tanh()) if dense.has_tanh else (layer,)
    return torch.nn.Sequential(*layers).eval().requires_grad_(False).to(device)
