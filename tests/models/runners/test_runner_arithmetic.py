"""The numbers that runners compute: images by shape, padding, pooling, attribute columns, tabular outputs."""

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headrace.features.encoders.classifier_folder import Activation as Scores
from headrace.features.encoders.classifier_folder import ClassifierSettings, Head
from headrace.features.encoders.embed.inputs import Embedder, Pooling
from headrace.features.encoders.image_folder import ImageClassifierSettings
from headrace.features.encoders.image_rows import ImageRows, by_shape, dimensions_of, pixels_of
from headrace.features.encoders.torch_classifier import TorchClassifier
from headrace.features.encoders.torch_encoder import TorchEncoder, padded
from headrace.features.encoders.torch_images import TorchImageClassifier, TorchImageEncoder
from headrace.models.engine.requests import EncodeRow
from headrace.models.runners.encoder import float32_bytes
from tests.models.runners.making import CPU, floats, rows


def test_images_of_one_shape_share_a_pass_and_texts_have_none() -> None:
    shapes = ((3, 2, 2), (3, 4, 2), (3, 2, 2))
    options = ImageRows(tuple(np.zeros(shape, np.float32) for shape in shapes), 5)
    asked = [*rows((0,), (0,), (0,), (9, 9), options=options), EncodeRow("text", (1,), 7), EncodeRow("all", (1,), None)]
    assert by_shape(asked) == [[0, 2], [1]]
    assert [pixels_of(row) is None for row in asked] == [False, False, False, True, True, True]
    assert [dimensions_of(row) for row in asked] == [5, 5, 5, 5, 7, None]


def test_rows_are_padded_behind_and_masked() -> None:
    values, mask = padded([(5, 6, 7), (8,)], 9, CPU)
    assert (values.tolist(), mask.tolist()) == ([[5, 6, 7], [8, 9, 9]], [[1, 1, 1], [1, 0, 0]])
    assert float32_bytes(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T) == struct.pack("<4f", 1, 3, 2, 4)


STATES = [[[3.0, 4.0], [1.0, 2.0], [8.0, 0.0]], [[0.0, 5.0], [9.0, 9.0], [torch.nan, torch.inf]]]


@pytest.mark.parametrize(
    ("pooling", "normalise", "dimensions", "expected"),
    [
        (Pooling.CLS, False, None, [[3.0, 4.0], [0.0, 5.0]]),
        (Pooling.CLS, True, None, [[0.6, 0.8], [0.0, 1.0]]),
        (Pooling.CLS, False, 1, [[3.0], [0.0]]),
        (Pooling.CLS, True, 1, [[1.0], [0.0]]),
        (Pooling.LAST, False, None, [[8.0, 0.0], [0.0, 5.0]]),
        (Pooling.MAX, False, None, [[8.0, 4.0], [0.0, 5.0]]),
        (Pooling.MEAN, False, None, [[4.0, 2.0], [0.0, 5.0]]),
    ],
)
def test_states_are_pooled_without_those_of_padding(
    pooling: Pooling, dimensions: int | None, expected: list[list[float]], *, normalise: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def model(**given: Any) -> Any:
        asked.append({name: value.tolist() for name, value in given.items()})
        return SimpleNamespace(last_hidden_state=torch.tensor(STATES, dtype=torch.bfloat16))

    of_transformers: Any = model
    of_transformers.config = SimpleNamespace(pad_token_id=None)
    embedder = Embedder(context_window=9, width=2, pooling=pooling, normalise=normalise)
    encoder = TorchEncoder(of_transformers, embedder, CPU)
    assert encoder.context_window == 9
    found = encoder.run(rows((5, 6, 7), (8,), options=dimensions))
    assert [floats(one) for one in found] == [pytest.approx(each, abs=1e-5) for each in expected]
    assert asked == [{"input_ids": [[5, 6, 7], [8, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}]


TYPED = ("albert", "bert", "deberta", "deberta-v2", "electra")


@pytest.mark.parametrize("model_type", [*TYPED, "roberta"])
def test_a_classifier_gives_token_types_to_the_families_that_take_them(model_type: str) -> None:
    asked: list[dict[str, Any]] = []
    numbers = torch.tensor([[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[6.0, 7.0], [torch.nan, 0.0], [0.0, 0.0]]])
    numbers = numbers.bfloat16()

    def model(**given: Any) -> Any:
        asked.append({name: value.tolist() for name, value in given.items()})
        return SimpleNamespace(logits=numbers)

    of_transformers: Any = model
    of_transformers.config = SimpleNamespace(pad_token_id=4, model_type=model_type)
    classifier = TorchClassifier(of_transformers, ClassifierSettings(9, ("a", "b"), Scores.IDENTITY, Head.TOKENS), CPU)
    tokens = rows((5, 6, 7), (8,), options=((0, 1, 1), (1,)))
    assert [floats(one) for one in classifier.run(tokens)] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    types = {"token_type_ids": [[0, 1, 1], [1, 0, 0]]} if model_type in TYPED else {}
    assert asked == [{"input_ids": [[5, 6, 7], [8, 4, 4]], "attention_mask": [[1, 1, 1], [1, 0, 0]], **types}]
    numbers[0, 2, 1] = torch.inf
    assert [one is None for one in classifier.run(tokens)] == [True, False]
    assert classifier.context_window == 9


@pytest.mark.parametrize(("window", "longest"), [(7, 50), (70, 70)])
def test_images_and_texts_of_one_pass_have_vectors_in_their_places(window: int, longest: int) -> None:
    texts: list[Any] = []

    def text_model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        texts.append((input_ids.tolist(), attention_mask.tolist()))
        return SimpleNamespace(pooler_output=input_ids[:, :2].bfloat16())

    model = SimpleNamespace(
        config=SimpleNamespace(model_type="clip", text_config=SimpleNamespace(pad_token_id=4)),
        dtype=torch.bfloat16,
        vision_model=lambda pixel_values: SimpleNamespace(pooler_output=pixel_values.flatten(1)),
        visual_projection=lambda pooled: pooled[:, 1:],
        text_model=text_model,
        text_projection=lambda pooled: pooled.flip(1),
    )
    encoder = TorchImageEncoder(model, Embedder(window, 3, image_tokens=50), CPU)
    images = ImageRows((np.array([[[9, 3, 4, 5]]], np.float32), np.array([[[1, 0, np.nan, 1]]], np.float32)), 2)
    first, image, bad, text = encoder.run([EncodeRow("t", (8,), None), *rows((0,), (0,), (4, 3, 5), options=images)])
    assert (floats(image), bad, floats(first), floats(text)) == ([0.6, 0.8], None, [0.44721, 0.89443], [0.6, 0.8])
    assert texts == [([[8, 4, 4], [4, 3, 5]], [[1, 0, 0], [1, 1, 1]])]
    assert encoder.context_window == longest


@pytest.mark.parametrize(
    ("activation", "scores"),
    [
        (Scores.SOFTMAX, [0.26894, 0.73106]),
        (Scores.SIGMOID, [0.5, 0.73106]),
        (Scores.IDENTITY, [0.0, 1.0]),
    ],
)
def test_images_of_any_shape_get_their_own_scores_in_float32(activation: Scores, scores: list[float]) -> None:
    asked: list[tuple[tuple[int, ...], torch.dtype]] = []

    def model(pixel_values: torch.Tensor) -> Any:
        asked.append((tuple(pixel_values.shape), pixel_values.dtype))
        return SimpleNamespace(logits=pixel_values.flatten(1)[:, :2])

    of_transformers: Any = model
    of_transformers.dtype = torch.bfloat16
    classifier = TorchImageClassifier(of_transformers, ImageClassifierSettings(50, ("a", "b"), activation), CPU)
    pixels = [np.full((1, 1, size), 9, np.float32) for size in (3, 2, 3)]
    for picture, numbers in zip(pixels, ([0, 1], [np.nan, 1], [0, 1]), strict=True):
        picture[0, 0, :2] = numbers
    first, bad, last = classifier.run(rows((0,), (0,), (0,), options=ImageRows(tuple(pixels))))
    assert (floats(first), bad, floats(last)) == (scores, None, scores)
    assert asked == [((2, 1, 1, 3), torch.bfloat16), ((1, 1, 1, 2), torch.bfloat16)]
    assert classifier.context_window == 50
