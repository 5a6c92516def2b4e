"""Describes pictures by a job of two steps: ``python -m examples.image_pipeline.describe``.

The first step classifies the picture; the second is a language model that gets the label. One job, accepted once: if a
worker is lost between the steps, the second still runs, and the first does not run again.
"""

import argparse
import random
import sys
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from examples.image_pipeline.train import SHAPES, drawn
from examples.stack import headrace
from headrace.client import Client, JobInfo


def submit(client: Client, picture: bytes, classifier: str, writer: str) -> JobInfo:
    """Submit the job of one picture (PNG); return it as accepted."""
    return client.submit(
        input={},
        steps=[
            {
                "name": "look",
                "task": "image_classify",
                "model": classifier,
                "input": {"images": ["data:image/png;base64," + b64encode(picture).decode()]},
                "top_k": 1,
            },
            {
                "name": "describe",
                "model": writer,
                "needs": ["look"],
                "input": {
                    "messages": [
                        {"role": "system", "content": "Name one thing in a kitchen that has this shape."},
                        {"role": "user", "content": {"$from": "look.output.classifications.0.0.label"}},
                    ]
                },
                "sampling": {"max_tokens": 24, "temperature": 0},
            },
        ],
    )


def described(client: Client, pictures: Sequence[bytes], classifier: str, writer: str) -> list[tuple[str, str]]:
    """Return the label and the text of each picture. All jobs are submitted before the first is waited for."""
    jobs = [submit(client, picture, classifier, writer) for picture in pictures]
    found = []
    for job in jobs:
        ended = client.wait(job["id"])
        if ended["status"] != "succeeded" or not ended["steps"]:
            raise RuntimeError(f"{job['id']} {ended['status']}: {ended['error']}")
        look, describe = ended["steps"]
        # Outputs that may be long, such as scores, are in the step's own job only.
        scores = client.result(look["job_id"])["classifications"][0]
        found.append((scores[0]["label"], describe["output"]["text"]))
    return found


def main() -> None:
    """Describe the pictures that are given, or twelve drawn ones."""
    parser = argparse.ArgumentParser(prog="python -m examples.image_pipeline.describe", description=__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, help="PNG files")
    parser.add_argument("--classifier", default="./shape-model", help="a folder, or the name of a running version")
    parser.add_argument("--writer", default="smollm2")
    options = parser.parse_args()
    drawing = random.Random(7)
    shapes = [drawing.choice(SHAPES) for _ in range(12)]
    pictures = [path.read_bytes() for path in options.pictures] or [drawn(shape, drawing) for shape in shapes]
    titles = [path.name for path in options.pictures] or shapes
    with headrace(options.classifier, options.writer) as server, Client(server.url, server.key) as client:
        name = Path(options.classifier).name
        for title, (label, text) in zip(titles, described(client, pictures, name, options.writer), strict=True):
            sys.stdout.write(f"{title:10} → {label:10} → {' '.join(text.split())}\n")


if __name__ == "__main__":
    main()
