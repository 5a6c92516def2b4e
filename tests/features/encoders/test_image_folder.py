"""The folder of a model of images: the files that are read, and the number of tokens of an image."""

import json
from typing import Any

import pytest

from headrace.features.encoders.classifier_folder import Activation
from headrace.features.encoders.image_folder import (
    CLS_TYPES,
    POOLED_TYPES,
    ImageClassifierSettings,
    clip_window,
    is_clip,
    is_image_classifier,
    is_image_encoder,
    num_tokens_of,
    read_image_classifier,
    width_of,
)
from headrace.store.errors import ModelLoadError

VIT: dict[str, Any] = {"model_type": "vit", "patch_size": 14, "image_size": 28, "hidden_size": 384}
CLASSIFIES = {"architectures": ["ViTForImageClassification"]}


def folder(config: dict[str, Any], processor: dict[str, Any] | None = None) -> dict[str, bytes]:
    files = {"config.json": config} | ({} if processor is None else {"preprocessor_config.json": processor})
    return {name: json.dumps(content).encode() for name, content in files.items()}


@pytest.mark.parametrize(
    ("config", "processor", "num_tokens"),
    [
        (VIT, {"size": {"height": 28, "width": 70}}, 2 * 5 + 1),
        (VIT, {"size": 29}, 2 * 2 + 1),
        (VIT, {"size": {"shortest_edge": 56}}, 4 * 4 + 1),
        (VIT, {}, 2 * 2 + 1),
        (VIT, {"size": 13}, 1 + 1),
        # The middle is cut out only if the file says so.
        (VIT, {"size": 280, "do_center_crop": True, "crop_size": 14}, 1 + 1),
        (VIT, {"size": 28, "do_center_crop": False, "crop_size": 14}, 2 * 2 + 1),
        (VIT, {"size": 28, "do_center_crop": True}, 2 * 2 + 1),
        ({"model_type": "resnet"}, {"size": 64}, 4 * 4 + 1),
        ({"model_type": "clip", "vision_config": {"patch_size": 32, "image_size": 96}}, {}, 3 * 3 + 1),
    ],
)
def test_an_image_counts_its_patches_and_one(
    config: dict[str, Any], processor: dict[str, Any], num_tokens: int
) -> None:
    assert num_tokens_of(folder(config, processor)) == num_tokens


@pytest.mark.parametrize(
    ("config", "processor", "said"),
    [
        (VIT, None, "preprocessor_config.json is missing"),
        ({"model_type": "clip"}, {"size": 28}, "preprocessor_config.json is missing"),
        (VIT, {"size": {"longest_edge": 3}}, "{'longest_edge': 3}"),
        ({"model_type": "vit"}, {}, "size of None"),
        (VIT, {"size": {"height": 1, "width": 0}}, "'width': 0}"),
    ],
)
def test_a_size_that_cannot_be_read_is_refused(
    config: dict[str, Any], processor: dict[str, Any] | None, said: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        num_tokens_of(folder(config, processor))
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"model_type": "clip"}, 512),
        ({"model_type": "clip", "projection_dim": 768}, 768),
        *(({"model_type": name, "hidden_size": 384, "hidden_sizes": [9]}, 384) for name in CLS_TYPES),
        ({"model_type": "resnet", "hidden_sizes": [64, 128], "hidden_size": 3}, 128),
        ({"model_type": "swin", "hidden_size": 96, "hidden_dim": 5}, 96),
        ({"model_type": "efficientnet", "hidden_sizes": [], "hidden_dim": 1280}, 1280),
    ],
)
def test_the_vector_of_an_image_is_as_wide_as_the_last_layer(config: dict[str, Any], width: int) -> None:
    assert width_of(folder(config)) == width


def test_each_folder_has_its_kind() -> None:
    kinds = {name: {"model_type": name} for name in (*CLS_TYPES, *POOLED_TYPES, "clip", "bert")}
    assert [name for name, one in kinds.items() if is_image_encoder(one)] == [*CLS_TYPES, *POOLED_TYPES]
    assert [name for name, one in kinds.items() if is_clip(one)] == ["clip"]
    assert not any(map(is_image_classifier, kinds.values()))
    for one in kinds.values():
        assert (
            is_image_classifier(one | CLASSIFIES),
            is_image_encoder(one | CLASSIFIES),
            is_clip(one | CLASSIFIES),
        ) == (
            True,
            False,
            False,
        )
    assert clip_window(folder({"model_type": "clip"})) == 77
    assert clip_window(folder({"model_type": "clip", "text_config": {"max_position_embeddings": 64}})) == 64


@pytest.mark.parametrize(
    ("more", "labels", "activation"),
    [
        ({"id2label": {"0": "mill", "1": "river"}}, ("mill", "river"), Activation.SOFTMAX),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), Activation.SOFTMAX),
        ({"id2label": {"0": "mill"}}, ("mill",), Activation.SIGMOID),
        ({"problem_type": "multi_label_classification"}, ("LABEL_0", "LABEL_1"), Activation.SIGMOID),
        ({"problem_type": "single_label_classification"}, ("LABEL_0", "LABEL_1"), Activation.SOFTMAX),
    ],
)
def test_a_classifier_has_its_labels_and_the_function_of_its_scores(
    more: dict[str, Any], labels: tuple[str, ...], activation: Activation
) -> None:
    files = folder(VIT | CLASSIFIES | more, {"size": 28})
    assert read_image_classifier(files) == ImageClassifierSettings(5, labels, activation)
