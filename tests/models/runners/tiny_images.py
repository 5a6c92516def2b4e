"""Tiny models of images with random weights, as folders of transformers; and pictures that differ in all respects."""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image
from tokenizers.processors import BertProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.models.tiny import VOCAB, save, save_tokenizer

SIDE = 32
END = 268
"""The first token behind those of ``save_tokenizer``."""

LABELS = ("bread", "mill", "mill", "river")  # ImageNet has names that stand for two classes
_NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
_VIT: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
_PLAIN = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
_SQUARE = {"image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE}, **_PLAIN}
_CROPPED = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE + 4},
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    **_PLAIN,
}
_FREE = {name: value for name, value in _CROPPED.items() if name != "crop_size"} | {
    "size": {"shortest_edge": SIDE},
    "do_center_crop": False,
}
_TEXT = {name: _VIT[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}

CLASSIFIERS: Mapping[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "vit": (lambda: ViTForImageClassification(ViTConfig(**_VIT, **_NAMED)), _SQUARE),
    "vit, several labels": (
        lambda: ViTForImageClassification(ViTConfig(**_VIT, **_NAMED, problem_type="multi_label_classification")),
        _SQUARE,
    ),
    "resnet, images of any shape": (lambda: ResNetForImageClassification(ResNetConfig(**_RESNET, **_NAMED)), _FREE),
}
ENCODERS: Mapping[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "vit": (lambda: ViTModel(ViTConfig(**_VIT), add_pooling_layer=False), _SQUARE),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**_VIT)), _CROPPED),
    "resnet": (lambda: ResNetModel(ResNetConfig(**_RESNET)), _CROPPED),
}


def build(made: tuple[Callable[[], PreTrainedModel], dict[str, Any]], folder: Path) -> Path:
    """Write a model in which every weight matters, with its image processor."""
    make, processor = made
    torch.manual_seed(5)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim > 0:
                parameter.normal_(0, 0.2)
    save(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def build_clip(folder: Path) -> Path:
    """Write a tiny CLIP. The vector of a text is that of its last token, ``END``."""
    text = {**_TEXT, "vocab_size": VOCAB, "max_position_embeddings": 48, "bos_token_id": 1, "eos_token_id": END}
    config = {"vision_config": _VIT, "text_config": {**text, "pad_token_id": 0}, "projection_dim": 24}
    build((lambda: CLIPModel(CLIPConfig(**config)), _CROPPED), folder)
    save_tokenizer(folder, marks=["<end>"])
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = BertProcessing(("<end>", backend.token_to_id("<end>")), ("<s>", 1))
    backend.save(str(folder / "tokenizer.json"))
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 52), mode: str = "RGB") -> Image.Image:
    """A picture of noise over a gradient."""
    width, height = size
    noise = np.random.default_rng(seed).normal(0, 60, (height, width, 3))
    slope = np.linspace(0, 180, width)[None, :, None] * np.array([1, 0.5, seed % 3])[None, None]
    return Image.fromarray(np.clip(noise + slope, 0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(content: bytes) -> str:
    """The file as a data URL. The type that it names is not believed."""
    return "data:image/any;base64," + b64encode(content).decode()
