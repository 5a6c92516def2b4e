"""One rule for every task: a row with NaN or infinity in the model's output has no answer, and spoils no other.

The activations, poolings and normalisations of these cases would make a finite answer of an infinite number.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headrace.features.encoders import torch_images as images
from headrace.features.encoders.classifier_folder import Activation, ClassifierSettings, Head
from headrace.features.encoders.embed.inputs import Dense, Embedder, Pooling
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.torch_classifier import TorchClassifier
from headrace.features.encoders.torch_encoder import TorchEncoder, read_dense
from headrace.features.encoders.torch_images import TorchImageClassifier, TorchImageEncoder, image_encoder_for
from headrace.models.engine.requests import EncodeRow
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings
from tests.models.runners.making import CPU, rows

SETTINGS = Settings(device="cpu")
INF, NAN = torch.inf, torch.nan
LOGITS = [[0.0, 1.0], [INF, 0.0], [0.0, -INF], [NAN, 0.0]]
ONLY_FIRST = [True, False, False, False]


def answered(runner: Any, asked: list[EncodeRow]) -> list[bool]:
    return [one is not None for one in runner.run(asked)]


def of_transformers(config: dict[str, Any], **outputs: Any) -> Any:
    """A model that always has the same outputs."""

    def model(**_given: Any) -> Any:
        return SimpleNamespace(**outputs)

    made: Any = model
    made.config, made.dtype = SimpleNamespace(**config), torch.float32
    return made


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("head", Head)
def test_a_classifier(activation: Activation, head: Head) -> None:
    logits = torch.tensor(LOGITS)
    numbers = torch.stack([torch.zeros_like(logits), logits], dim=1) if head is Head.TOKENS else logits
    model = of_transformers({"pad_token_id": 0, "model_type": "roberta"}, logits=numbers)
    classifier = TorchClassifier(model, ClassifierSettings(9, ("a", "b"), activation, head), CPU)
    assert answered(classifier, rows(*[(5, 6)] * 4)) == ONLY_FIRST


@pytest.mark.parametrize("activation", Activation)
def test_a_classifier_of_images(activation: Activation) -> None:
    model = of_transformers({}, logits=torch.tensor(LOGITS))
    classifier = TorchImageClassifier(model, ImageClassifierSettings(50, ("a", "b"), activation), CPU)
    pixels = ImageRows((np.zeros((1, 2, 2), np.float32),) * 4)
    assert answered(classifier, rows(*[(0,)] * 4, options=pixels)) == ONLY_FIRST


@pytest.mark.parametrize("pooling", Pooling)
def test_an_encoder(pooling: Pooling) -> None:
    """The second token decides the vector of no pooling here, or not with minus infinity."""
    states = torch.tensor([[[1.0, 0.0], own, [1.0, 0.0]] for own in LOGITS])
    model = of_transformers({"pad_token_id": 0}, last_hidden_state=states)
    encoder = TorchEncoder(model, Embedder(context_window=9, width=2, pooling=pooling), CPU)
    assert answered(encoder, rows(*[(5, 6, 7)] * 4)) == ONLY_FIRST


def test_an_encoder_of_images_also_beyond_the_dimensions_that_are_asked_for() -> None:
    vectors = torch.tensor([[1.0, *own] for own in LOGITS])
    model = of_transformers({"model_type": "vit"}, pooler_output=vectors, last_hidden_state=vectors[:, None])
    encoder = TorchImageEncoder(model, Embedder(9, 3, has_texts=False, image_tokens=5), CPU)
    pixels = ImageRows((np.zeros((1, 2, 2), np.float32),) * 4, 1)
    assert answered(encoder, rows(*[(0,)] * 4, options=pixels)) == ONLY_FIRST


def test_weights_that_an_activation_would_hide_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "2_Dense" / "model.safetensors"
    path.parent.mkdir()
    save_file({"linear.weight": torch.tensor([[INF, 0.0]])}, path)
    with pytest.raises(ModelLoadError, match="not finite"):
        read_dense(tmp_path, Dense("2_Dense", 1, has_tanh=True), CPU)
    model = SimpleNamespace(logit_scale=torch.tensor(100.0))
    monkeypatch.setattr(images, "small_files", lambda _folder: {})
    monkeypatch.setattr(images, "read_embedder", lambda _files: Embedder(9, 2, image_tokens=5))
    monkeypatch.setattr(images, "read_model", lambda *_args, **_given: (model, CPU))
    with pytest.raises(ModelLoadError, match="logit_scale"):
        image_encoder_for(tmp_path, SETTINGS)
