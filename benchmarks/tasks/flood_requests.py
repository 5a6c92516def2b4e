"""What the floods of ``benchmarks.tasks.floods`` are: a model and a request for each task.

The models: MiniLM (embed; with a random head rerank and classify), a random ViT of the size "tiny", the fraud model of
the examples, and a random Whisper of the width and depth of "tiny" with a window of two seconds, or a given folder.
"""

import base64
import io
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.tasks.__main__ import with_head
from benchmarks.tasks.encoding import sentences
from benchmarks.tasks.images import build, pictures
from examples.fraud_scoring.payments import payments
from examples.fraud_scoring.train import train
from headrace.models.catalog import fetch
from headrace.store.settings import load_settings
from tests.models.tiny_whisper import build_whisper

_CLIP_S = 4

Send = Callable[[httpx2.Client, int], httpx2.Response]


@dataclass(frozen=True)
class Flood:
    """A model for ``headrace up --model``, and what sends the n-th request."""

    model: str
    send: Send


def _posting(url: str, body: Callable[[int], Mapping[str, Any]]) -> Send:
    return lambda client, number: client.post(url, json=body(number))


def _embed(_place: Path, _whisper: Path | None) -> Flood:
    texts = sentences(64, seed=1)
    return Flood("minilm", _posting("/v1/embeddings", lambda _: {"model": "minilm", "input": texts}))


def _rerank(place: Path, _whisper: Path | None) -> Flood:
    folder = with_head(fetch("minilm", load_settings().home / "models"), place / "reranker", 1)
    body = {"model": "reranker", "query": "where is the mill?", "documents": sentences(64, seed=1)}
    return Flood(str(folder), _posting("/v1/rerank", lambda _: body))


def _classify(place: Path, _whisper: Path | None) -> Flood:
    folder = with_head(fetch("minilm", load_settings().home / "models"), place / "labels", 5)
    body = {"model": "labels", "input": sentences(64, seed=1)}
    return Flood(str(folder), _posting("/v1/classify", lambda _: body))


def _images(place: Path, _whisper: Path | None) -> Flood:
    urls = ["data:image/png;base64," + base64.b64encode(one).decode() for one in pictures(8)]
    folder = build(place / "vit")
    return Flood(str(folder), _posting("/v1/images/classify", lambda _: {"model": "vit", "images": urls}))


def _tabular(place: Path, _whisper: Path | None) -> Flood:
    train(place / "fraud", payments(5000, seed=1), epochs=2, seed=1)
    rows = [one.row for one in payments(100, seed=2)]
    return Flood(str(place / "fraud"), _posting("/v1/tabular/predictions", lambda _: {"model": "fraud", "rows": rows}))


def _transcribe(place: Path, whisper: Path | None) -> Flood:
    folder = build_whisper(place / "whisper", width=384, layers=4) if whisper is None else whisper.absolute()
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        random = np.random.default_rng(1)
        file.writeframes((random.normal(0, 3000, 16_000 * _CLIP_S)).astype("<i2").tobytes())
    files = {"file": ("noise.wav", sound.getvalue())}
    return Flood(
        str(folder),
        lambda client, _: client.post("/v1/audio/transcriptions", files=files, data={"model": folder.name}),
    )


FLOODS: Mapping[str, Callable[[Path, Path | None], Flood]] = {
    "embed": _embed,
    "rerank": _rerank,
    "classify": _classify,
    "image_classify": _images,
    "tabular": _tabular,
    "transcribe": _transcribe,
}
