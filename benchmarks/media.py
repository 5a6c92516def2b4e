"""``make bench-media``: speech and pictures through the whole path, beside the same models called in a plain loop.

One embedded stack has two workers: the voice Kokoro, and a pipeline of pictures with random weights whose pictures take
one to two seconds. This process has the same two models. In each round the loop here and the whole path make the same
things, one after the other, so that a drift of the machine's speed affects both; the stack is idle while the loop runs.

- First sound: from the request to the first samples, of ``/v1/audio/speech`` and of the voice's first piece.
- Pictures a minute: all are asked for at once of ``/v1/images/generations``, and the last answer has come; in the loop
  each is made and written as PNG. The pixels of both must be equal.

Prints a table and, as its last line, one JSON object. Ends with 1 if a median ratio is below ``--least``.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import httpx2
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.engine.quiet import mark, wait_until_quiet
from benchmarks.path import cpu_name
from headrace.cli.local.stack import running_stack
from headrace.features.speech.kokoro_folder import write_folder
from headrace.features.speech.kokoro_voice import KokoroVoice, load_kokoro
from headrace.features.speech.saying import Saying
from headrace.features.speech.sentences import pieces_of
from headrace.features.speech.voice_folder import KokoroConfig
from headrace.store.settings import load_settings
from tests.features.diffusion.tiny_pipeline import build_pipeline

console = Console(stderr=True)
TEXT = "川のそばの古い水車は、今日も朝からゆっくりと回っています。雨の日は、みんな家にいます。"
STEPS = 2
SIZE = 256  # the layers of smaller pictures take less time than two threads need to wake each other
QUIET_WAIT_S = 60.0

Turn = Callable[[], tuple[float, Any]]
"""Returns what was measured, and what was made."""


def speech_loop(voice: KokoroVoice, name: str) -> tuple[float, Any]:
    """Say each piece of the text; the seconds are those to the end of the first one."""
    began, first_s, said = time.perf_counter(), 0.0, []
    for piece in pieces_of(TEXT):
        said.append(voice.say(Saying(piece, name, 1.0)))
        first_s = first_s or time.perf_counter() - began
    return first_s, None


def speech_path(client: httpx2.Client, model: str) -> tuple[float, Any]:
    """Read the sound to its end; the seconds are those to its first bytes."""
    body = {"model": model, "input": TEXT, "response_format": "pcm"}
    began = time.perf_counter()
    with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        blocks = answer.raise_for_status().iter_bytes()
        next(blocks)
        first_s = time.perf_counter() - began
        for _ in blocks:
            pass
    return first_s, None


def pictures_loop(pipeline: Any, count: int) -> tuple[float, Any]:
    """Make pictures one after another; return how many a minute, and their files."""
    began, made = time.perf_counter(), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        found = pipeline(f"mill {seed}", num_inference_steps=STEPS, width=SIZE, height=SIZE, generator=generator)
        content = io.BytesIO()
        found.images[0].save(content, "PNG")
        made.append(content.getvalue())
    return 60 * count / (time.perf_counter() - began), made


def pictures_path(client: httpx2.Client, model: str, count: int) -> tuple[float, Any]:
    """Ask for the same pictures at once; return how many a minute, and their files."""

    def one(seed: int) -> bytes:
        body = {"model": model, "prompt": f"mill {seed}", "size": f"{SIZE}x{SIZE}", "steps": STEPS, "seed": seed}
        answer = client.post("/v1/images/generations", json=body).raise_for_status()
        return b64decode(answer.json()["data"][0]["b64_json"])

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        made = list(pool.map(one, range(count)))
    return 60 * count / (time.perf_counter() - began), made


def pixels(files: list[bytes]) -> list[bytes]:
    """Return the pixels of pictures."""
    return [Image.open(io.BytesIO(one)).convert("RGB").tobytes() for one in files]


def rounds_of(loop: Turn, path: Turn, num_rounds: int) -> list[tuple[tuple[float, Any], tuple[float, Any]]]:
    """Return what loop and path have measured in each round, each of them first in turn."""
    found = []
    for number in range(num_rounds):
        wait_until_quiet(QUIET_WAIT_S, console.log)
        if number % 2:
            asked = path()
            found.append((loop(), asked))
        else:
            found.append((loop(), path()))
        console.log(f"round {number + 1}: in a loop {found[-1][0][0]:.3f}, whole path {found[-1][1][0]:.3f}")
    return found


def summary(measured: list[tuple[float, float]], *, is_time: bool) -> dict[str, Any]:
    """Return the medians, and how good the path is beside the loop."""
    ratios = [loop / path if is_time else path / loop for loop, path in measured]
    return {
        "loop": round(statistics.median(loop for loop, _ in measured), 3),
        "path": round(statistics.median(path for _, path in measured), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Start the stack, load the models here too, and alternate."""
    painter, kokoro = build_pipeline(folder / "painter"), folder / "kokoro"
    write_folder(kokoro)
    settings = load_settings().model_copy(update={"home": folder / "home", "api_port": 0, "flower_port": 0})
    config = KokoroConfig.model_validate_json((kokoro / "config.json").read_bytes())
    with running_stack(settings, [str(painter), str(kokoro)], console.log, mark()) as stack:
        voice = load_kokoro(kokoro, config, 0)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(painter, use_safetensors=True)
        pipeline.set_progress_bar_config(disable=True)
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        limits = httpx2.Limits(max_connections=options.pictures)
        client = httpx2.Client(base_url=stack.api_url, headers=headers, timeout=600, limits=limits, trust_env=False)
        with closing(client):
            say = partial(speech_loop, voice, config.voices[0]), partial(speech_path, client, stack.names[1])
            paint = partial(pictures_loop, pipeline), partial(pictures_path, client, stack.names[0])
            for warm in (*say, partial(paint[0], 1), partial(paint[1], 1)):
                warm()
            sounds = rounds_of(*say, options.rounds)
            pictures = rounds_of(
                partial(paint[0], options.pictures), partial(paint[1], options.pictures), options.rounds
            )
    if any(pixels(loop) != pixels(path) for (_, loop), (_, path) in pictures):
        raise SystemExit("the whole path made other pictures than the loop")
    return {
        "first_sound_s": summary([(loop, path) for (loop, _), (path, _) in sounds], is_time=True),
        "pictures_a_minute": summary([(loop, path) for (loop, _), (path, _) in pictures], is_time=False),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=12, help="in one round")
    parser.add_argument("--least", type=float, default=0.95, help="how good the whole path must be beside the loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="media-") as scratch:
        found = measure(Path(scratch), options)
    table = Table(title=f"Beside the same models in a plain loop, medians of {options.rounds} rounds")
    for heading in ("", "in a loop", "whole path", "ratio"):
        table.add_column(heading, justify="right")
    for name, one in found.items():
        table.add_row(name, str(one["loop"]), str(one["path"]), str(one["ratio"]))
    console.print(table)
    about = {"cpus": os.cpu_count(), "machine": cpu_name(), "torch": torch.__version__}
    about |= {"diffusers": diffusers.__version__, **vars(options)}
    print(json.dumps({"benchmark": "media", **about, **found}))
    sys.exit(0 if min(one["ratio"] for one in found.values()) >= options.least else 1)


if __name__ == "__main__":
    main()
