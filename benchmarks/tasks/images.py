"""Images a second of a classifier beside transformers: ``python -m benchmarks.tasks.images``.

A ViT of the size "tiny" (192 wide, 12 layers, 224 x 224 pixels) with random weights classifies pictures of several
sizes, which are cut from those of scikit-image (installed into an environment of its own), and noise. ``loop`` calls
transformers for one image after the other. ``arrival`` fills batches of 32 in the order given, prepares each batch and
computes it. ``ours`` is the engine with jobs of one image, which are prepared on threads of their own as in a worker.
All have the same torch, threads and image processor, and take turns after a warm-up. Before the turns the classes of
ours and of ``loop`` are compared. Prints a table and, as its last line, JSON.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from benchmarks.venvs import CannotInstall, environment
from headrace.features.encoders.encode_jobs import numbers_of
from headrace.features.encoders.image_folder import read_image_classifier
from headrace.features.encoders.image_rows import ImageRows, PrepareImage
from headrace.features.encoders.torch_images import TorchImageClassifier, image_classifier_for, image_processor
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import EncodeRequest
from headrace.models.families.model_folder import small_files
from headrace.prompts.vision.pictures import read_picture
from headrace.store.settings import Settings

BATCH = 32
THREADS = 32
"""Jobs of a worker at once, by default."""

SIZES = ((320, 240), (224, 224), (500, 375), (256, 384))
_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

Turn = Callable[[Sequence[bytes]], list[int]]


def build(folder: Path) -> Path:
    """Write the classifier of 1,000 classes, with weights that tell images apart."""
    torch.manual_seed(1)
    config = ViTConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3)
    config.num_labels = 1000
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embeddings" not in name:
                parameter.normal_(0, 0.06)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    return folder


def photographs() -> list[Image.Image]:
    """Return the pictures in the package scikit-image; none if it cannot be installed."""
    try:
        folder = environment("scikit-image", print).parent
    except CannotInstall as error:
        print(f"no pictures of scikit-image: {error}")
        return []
    paths = sorted(folder.glob("lib/python3*/site-packages/skimage/data/*.[pj][np]g"))
    return [Image.open(path).convert("RGB") for path in paths]


def pictures(count: int) -> list[bytes]:
    """Return PNG and JPEG files by turns: cuts of photographs, and each fifth one noise."""
    random = np.random.default_rng(2)
    found, made = photographs(), []
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        if number % 5 == 0 or not found:
            picture = Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8))
        else:
            source = found[number % len(found)]
            left, top = (int(random.integers(0, max(side // 2, 1))) for side in source.size)
            picture = source.crop((left, top, *source.size)).resize(size)
        file = io.BytesIO()
        picture.save(file, "JPEG" if number % 2 else "PNG")
        made.append(file.getvalue())
    return made


@torch.inference_mode()
def classes(model: Any, process: PrepareImage, files: Sequence[bytes]) -> list[int]:
    """Return the classes of one batch."""
    pixels = torch.from_numpy(np.stack([process(read_picture(file, "image")) for file in files]))
    return [int(one) for one in model(pixel_values=pixels).logits.argmax(1)]


def with_engine(
    encoder: TorchImageClassifier, process: PrepareImage, files: Sequence[bytes], num_tokens: int
) -> list[int]:
    """Return the classes by jobs of one image on the engine."""
    engine = EncodeEngine(encoder, EncodeConfig(max_slots=THREADS))
    engine.start()

    def job(number: int) -> int:
        rows = ImageRows((process(read_picture(files[number], "image")),))
        vector = engine.submit(EncodeRequest(number, ((0,) * num_tokens,), rows)).result().vectors[0]
        scores = numbers_of(vector)
        return scores.index(max(scores))

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(job, range(len(files))))
    finally:
        engine.stop(10)


def main() -> None:
    """Compare, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = pictures(options.images)
    with tempfile.TemporaryDirectory() as name:
        folder = build(Path(name))
        encoder = image_classifier_for(folder, Settings(device="cpu"))
        theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
        process, num_tokens = image_processor(folder), read_image_classifier(small_files(folder)).num_tokens
    turns: dict[str, Turn] = {
        "ours": lambda given: with_engine(encoder, process, given, num_tokens),
        "arrival": lambda given: [
            one for at in range(0, len(given), BATCH) for one in classes(theirs, process, given[at : at + BATCH])
        ],
        "loop": lambda given: [classes(theirs, process, [file])[0] for file in given],
    }
    answers = {name: turn(files) for name, turn in turns.items()}
    equal = sum(one == other for one, other in zip(answers["ours"], answers["loop"], strict=True))
    print(f"equal classes: {equal} of {len(files)}, {len(set(answers['loop']))} different ones")
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(options.rounds):
        for name, turn in turns.items():
            started_at = time.monotonic()
            turn(files)
            rates[name].append(len(files) / (time.monotonic() - started_at))
    for name, found in rates.items():
        print(f"{name:8} {statistics.median(found):7.1f} images/s   ({min(found):.1f} to {max(found):.1f})")
    print(json.dumps({"options": vars(options), "equal": equal, "images": len(files), "images_per_s": rates}))


if __name__ == "__main__":
    main()
