"""Trains a small classifier of drawn shapes: ``python -m examples.image_pipeline.train FOLDER``.

The network is transformers' ResNet, and the folder is read by ``headrace up --model FOLDER`` as it is.
"""

import argparse
import io
import json
import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

SHAPES = ("circle", "square", "triangle")
SIZE = {"height": 32, "width": 32}


def drawn(shape: str, draw: random.Random) -> bytes:
    """Return a PNG with one shape, of random size, place and colours."""
    ground, colour = (tuple(draw.randrange(low, low + 100) for _ in range(3)) for low in (150, 0))
    picture = Image.new("RGB", (96, 96), ground)
    size = draw.randrange(40, 72)
    left, top = draw.randrange(96 - size), draw.randrange(96 - size)
    box = (left, top, left + size, top + size)
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=colour)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def train(folder: Path, *, steps: int, seed: int) -> None:
    """Write a trained classifier to the folder."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    names = dict(enumerate(SHAPES))
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
        id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    network, processor = ResNetForImageClassification(config), ViTImageProcessorPil(size=SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        labels = [draw.randrange(len(SHAPES)) for _ in range(32)]
        pictures: list[Image.Image] = [Image.open(io.BytesIO(drawn(SHAPES[label], draw))) for label in labels]
        logits = network(**processor(images=pictures, return_tensors="pt")).logits
        loss = cross_entropy(logits, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        optimizer.step()
    network.save_pretrained(folder)
    settings = json.loads(processor.to_json_string()) | {"image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    sys.stdout.write(f"trained {steps} steps, last loss {loss.item():.3f}: {folder}\n")


def main() -> None:
    """Train and write the folder."""
    parser = argparse.ArgumentParser(prog="python -m examples.image_pipeline.train", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    train(options.folder, steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
