"""The folder of a model of images: what it makes of them, its labels, and how many tokens an image counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.features.encoders.classifier_folder import Activation, Files, labels_of
from headrace.prompts.folder_json import json_object, whole_number
from headrace.store.errors import ModelLoadError

PROCESSOR_FILE: Final = "preprocessor_config.json"
"""How transformers' image processor prepares an image for the model."""

CLIP: Final = "clip"
"""The ``model_type`` of models that embed images and texts in one space."""

CLS_TYPES: Final = ("vit", "deit", "dinov2", "dinov2_with_registers", "data2vec-vision", "ijepa")
POOLED_TYPES: Final = ("resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet_v2", "swin", "swinv2")
"""The values of ``model_type`` that embed images here: by the first token, and by the pooled last layer."""

_CLASSIFIES = "ForImageClassification"
# A model without patches is counted as if it had these.
_PATCH = 16


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Images as a model takes them. An image counts ``num_tokens``, whatever its own size."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class ImageClassifierSettings(ImageSettings):
    """The settings of an image classifier. ``labels`` are in the model's order."""

    labels: tuple[str, ...]
    activation: Activation


def is_image_classifier(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that classifies images."""
    return _architecture(config).endswith(_CLASSIFIES)


def is_image_encoder(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that embeds images and no texts."""
    return config.get("model_type") in (*CLS_TYPES, *POOLED_TYPES) and not is_image_classifier(config)


def is_clip(config: Mapping[str, Any]) -> bool:
    """Return True if this ``config.json`` is of a model that embeds images and texts."""
    return config.get("model_type") == CLIP and not is_image_classifier(config)


def read_image_classifier(files: Files) -> ImageClassifierSettings:
    """Return the settings in a folder. Raises ModelLoadError for a model that cannot run."""
    config = json_object(files, "config.json")
    return ImageClassifierSettings(num_tokens_of(files), labels_of(config), _activation(config))


def num_tokens_of(files: Files) -> int:
    """Return how many tokens an image counts: the patches of the model and one, or those of 16 pixels.

    Raises ModelLoadError for a folder without an image processor, or with a size that cannot be read.
    """
    config = json_object(files, "config.json")
    vision = config.get("vision_config") if is_clip(config) else config
    if PROCESSOR_FILE not in files or not isinstance(vision, dict):
        raise ModelLoadError(f"{PROCESSOR_FILE} is missing: it says how an image is prepared for the model")
    processor = json_object(files, PROCESSOR_FILE)
    wanted = processor.get("crop_size") if processor.get("do_center_crop") else None
    height, width = _sides(wanted or processor.get("size") or vision.get("image_size"))
    patch = whole_number(vision, "patch_size") if isinstance(vision.get("patch_size"), int) else _PATCH
    return max(height // patch, 1) * max(width // patch, 1) + 1


def width_of(files: Files) -> int:
    """Return how many numbers the vector of an image has. Raises ModelLoadError."""
    config = json_object(files, "config.json")
    if is_clip(config):
        return whole_number({"projection_dim": 512, **config}, "projection_dim")
    if config.get("model_type") in CLS_TYPES:
        return whole_number(config, "hidden_size")
    sizes = config.get("hidden_sizes")
    if isinstance(sizes, list) and sizes and isinstance(sizes[-1], int):
        return int(sizes[-1])
    return whole_number(config, "hidden_size", "hidden_dim")


def clip_window(files: Files) -> int:
    """Return the longest text of a model that embeds texts too, in tokens. Raises ModelLoadError."""
    text = json_object(files, "config.json").get("text_config")
    return whole_number(
        {"max_position_embeddings": 77, **(text if isinstance(text, dict) else {})}, "max_position_embeddings"
    )


def _architecture(config: Mapping[str, Any]) -> str:
    return str(next(iter(config.get("architectures") or ()), ""))


def _activation(config: Mapping[str, Any]) -> Activation:
    """Return what makes scores of the model's numbers, as transformers' pipeline does."""
    is_multiple = config.get("problem_type") == "multi_label_classification"
    return Activation.SIGMOID if is_multiple or len(labels_of(config)) == 1 else Activation.SOFTMAX


def _sides(size: object) -> tuple[int, int]:
    """Return height and width of a size as files of transformers write it."""
    match size:
        case int():
            sides = (size, size)
        case {"height": int(height), "width": int(width)}:
            sides = (height, width)
        case {"shortest_edge": int(edge)}:
            sides = (edge, edge)
        case _:
            raise ModelLoadError(f"{PROCESSOR_FILE}: a size of {size!r} cannot be read")
    if min(sides) < 1:
        raise ModelLoadError(f"{PROCESSOR_FILE}: a size of {size!r} has no pixels")
    return sides
