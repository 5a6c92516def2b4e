"""Models of images on torch: transformers' own classes and image processors, one forward pass for each shape of a step.

The images of different jobs share a pass. ``image_processor`` prepares an image on the thread of its job, so that the
engine's thread only computes.
"""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from headrace.features.encoders.embed.inputs import Embedder, read_embedder
from headrace.features.encoders.image_folder import CLS_TYPES, ImageClassifierSettings, read_image_classifier
from headrace.features.encoders.image_rows import PrepareImage, by_shape, dimensions_of, pixels_of
from headrace.features.encoders.torch_classifier import ACTIVATIONS
from headrace.features.encoders.torch_encoder import padded
from headrace.models.engine.requests import EncodeRow
from headrace.models.families.model_folder import small_files
from headrace.models.runners.encoder import finite_bytes, read_model
from headrace.models.runners.torch_runner import translate_torch_errors
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings


def image_processor(folder: Path) -> PrepareImage:
    """Return what prepares a picture as ``preprocessor_config.json`` says: (channels, height, width), float32.

    It is transformers' image processor on Pillow. Raises ModelLoadError if the file cannot be read.
    """
    try:
        read: Any = AutoImageProcessor
        process = read.from_pretrained(folder, backend="pil", trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises errors of any type for a file that it cannot read
        raise ModelLoadError(f"{folder}: the image processor cannot be read: {error}") from error
    return lambda picture: process(picture, return_tensors="np")["pixel_values"][0]


class TorchImageClassifier:
    """Classifies images with one model on one device. A request's options are its ``ImageRows``."""

    def __init__(self, model: Any, settings: ImageClassifierSettings, device: torch.device) -> None:
        self.context_window = settings.num_tokens
        self.model = model
        self._activation = ACTIVATIONS[settings.activation]
        self._device = device

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each image's scores, one for each label, as little-endian float32.

        None where a score or its logit is not finite.
        """
        with translate_torch_errors():
            found: list[bytes | None] = [None] * len(rows)
            for places in by_shape(rows):
                numbers = self.model(pixel_values=_batch(self.model, rows, places, self._device)).logits.float()
                _put(found, places, self._activation(numbers), numbers)
            return found


class TorchImageEncoder:
    """Embeds images, and texts if the model does. An image's options are the request's ``ImageRows``."""

    def __init__(self, model: Any, embedder: Embedder, device: torch.device) -> None:
        self.context_window = embedder.longest_input
        self.model = model
        self._has_texts = embedder.has_texts
        self._takes_first = model.config.model_type in CLS_TYPES
        self._device = device

    @torch.inference_mode()
    def run(self, rows: Sequence[EncodeRow]) -> list[bytes | None]:
        """Return each row's vector, of length 1, as little-endian float32; None where its numbers are not finite."""
        with translate_torch_errors():
            found: list[bytes | None] = [None] * len(rows)
            for places in by_shape(rows):
                vectors = self._of_images(_batch(self.model, rows, places, self._device))
                _put(found, places, self._shaped(vectors, rows, places), vectors)
            texts = [place for place, row in enumerate(rows) if pixels_of(row) is None]
            if texts:
                vectors = self._of_texts([rows[place].tokens for place in texts])
                _put(found, texts, self._shaped(vectors, rows, texts), vectors)
            return found

    def _of_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (images, width)."""
        if self._has_texts:
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            projected: torch.Tensor = self.model.visual_projection(pooled)
            return projected
        output = self.model(pixel_values=pixels)
        found: torch.Tensor = output.last_hidden_state[:, 0] if self._takes_first else output.pooler_output.flatten(1)
        return found

    def _of_texts(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (texts, width)."""
        # Padding is behind the token whose vector stands for the text, and each token sees those before it alone.
        ids, mask = padded(texts, int(self.model.config.text_config.pad_token_id or 0), self._device)
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        projected: torch.Tensor = self.model.text_projection(pooled)
        return projected

    def _shaped(
        self, vectors: torch.Tensor, rows: Sequence[EncodeRow], places: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        return [
            normalize(vector[: dimensions_of(rows[place])], dim=0)
            for vector, place in zip(vectors.float(), places, strict=True)
        ]


def _batch(model: Any, rows: Sequence[EncodeRow], places: Sequence[int], device: torch.device) -> torch.Tensor:
    pixels = torch.stack([torch.from_numpy(pixels_of(rows[place])) for place in places])
    return pixels.to(device, model.dtype)


def _put(
    found: list[bytes | None],
    places: Sequence[int],
    answers: Sequence[torch.Tensor] | torch.Tensor,
    computed: torch.Tensor,
) -> None:
    for place, answer in zip(places, finite_bytes(answers, computed), strict=True):
        found[place] = answer


def image_classifier_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> TorchImageClassifier:
    """Return the classifier of a model folder. ``dtype`` goes before the setting; ``auto`` is float32.

    Raises ModelLoadError if weights are missing, pickled, or do not fit the configuration.
    """
    found = read_image_classifier(small_files(folder))
    model, device = read_model(AutoModelForImageClassification, folder, settings, dtype=dtype)
    return TorchImageClassifier(model, found, device)


def image_encoder_for(folder: Path, settings: Settings, *, dtype: str = "auto") -> tuple[TorchImageEncoder, float]:
    """Return the encoder of a model folder, and the factor by which a cosine of an image and a text is multiplied.

    The factor is 1 for a model that embeds images alone. Raises ModelLoadError as ``image_classifier_for``.
    """
    embedder = read_embedder(small_files(folder))
    # A pooler over the first token is for classifying: a folder may lack it.
    model, device = read_model(AutoModel, folder, settings, dtype=dtype, unused="pooler.")
    scale = float(model.logit_scale.exp()) if embedder.has_texts else 1.0
    if not isfinite(scale):
        raise ModelLoadError(f"{folder}: the weight logit_scale has no finite exponential")
    return TorchImageEncoder(model, embedder, device), scale
