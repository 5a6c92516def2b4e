"""The first token of a chat beside a flood of another task on one machine: ``python -m benchmarks.tasks.floods TASK``.

A whole local stack with two workers: one of a chat model, one of the task's model. Turns alternate: some streamed chats
while the other worker is idle, as many while callers keep it full, and at last as many while it is full and has the
niceness 19, because both workers share the cores. For ``embed`` a request of one text is timed in the same turns; its
flood has 64 texts in a request. The models of the floods: MiniLM (embed; with a random head rerank and classify), a
random ViT of the size "tiny", the fraud model of the examples, and the Whisper folder of ``--whisper``. Prints a table
and, as its last line, JSON.
"""

import argparse
import base64
import io
import json
import os
import statistics
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from openai import OpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.batch import first_token
from benchmarks.path import cpu_name
from benchmarks.tasks.__main__ import with_head
from benchmarks.tasks.encoding import sentences
from benchmarks.tasks.images import build, pictures
from cli.local.stack import Stack, running_stack
from examples.fraud_scoring.payments import payments
from examples.fraud_scoring.train import train
from models.catalog import fetch
from store.settings import load_settings

console = Console(stderr=True)

CHAT = "smollm2"
CALLERS = 4
ALONE, BESIDE, NICE = "alone", "beside the flood", "beside the flood at nice 19"

Send = Callable[[httpx2.Client, int], httpx2.Response]


@dataclass(frozen=True)
class Flood:
    """A model for ``headrace up --model``, and what sends the n-th request."""

    model: str
    send: Send


def _posting(url: str, body: Callable[[int], Mapping[str, Any]]) -> Send:
    return lambda client, number: client.post(url, json=body(number))


def _embed(_place: Path, _options: argparse.Namespace) -> Flood:
    texts = sentences(64, seed=1)
    return Flood("minilm", _posting("/v1/embeddings", lambda _: {"model": "minilm", "input": texts}))


def _rerank(place: Path, _options: argparse.Namespace) -> Flood:
    folder = with_head(fetch("minilm", load_settings().home / "models"), place / "reranker", 1)
    body = {"model": "reranker", "query": "where is the mill?", "documents": sentences(64, seed=1)}
    return Flood(str(folder), _posting("/v1/rerank", lambda _: body))


def _classify(place: Path, _options: argparse.Namespace) -> Flood:
    folder = with_head(fetch("minilm", load_settings().home / "models"), place / "labels", 5)
    return Flood(str(folder), _posting("/v1/classify", lambda _: {"model": "labels", "input": sentences(64, seed=1)}))


def _images(place: Path, _options: argparse.Namespace) -> Flood:
    urls = ["data:image/png;base64," + base64.b64encode(one).decode() for one in pictures(8)]
    folder = build(place / "vit")
    return Flood(str(folder), _posting("/v1/images/classify", lambda _: {"model": "vit", "images": urls}))


def _tabular(place: Path, _options: argparse.Namespace) -> Flood:
    train(place / "fraud", payments(5000, seed=1), epochs=2, seed=1)
    rows = [one.row for one in payments(100, seed=2)]
    return Flood(str(place / "fraud"), _posting("/v1/tabular/predictions", lambda _: {"model": "fraud", "rows": rows}))


def _transcribe(_place: Path, options: argparse.Namespace) -> Flood:
    if options.whisper is None:
        raise SystemExit("transcribe: give a Whisper folder with --whisper")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        random = np.random.default_rng(1)
        file.writeframes((random.normal(0, 3000, 16_000 * 60)).astype("<i2").tobytes())
    files = {"file": ("noise.wav", sound.getvalue())}
    folder = options.whisper.absolute()
    return Flood(
        str(folder),
        lambda client, _: client.post("/v1/audio/transcriptions", files=files, data={"model": folder.name}),
    )


FLOODS: Mapping[str, Callable[[Path, argparse.Namespace], Flood]] = {
    "embed": _embed,
    "rerank": _rerank,
    "classify": _classify,
    "image_classify": _images,
    "tabular": _tabular,
    "transcribe": _transcribe,
}


@contextmanager
def flooded(stack: Stack, flood: Flood, callers: int) -> Iterator[list[float]]:
    """Keep the worker full for the block, with no callers idle; yield the times at which requests have ended."""
    ended: list[float] = []
    stopped = threading.Event()
    numbers = count()

    def call() -> None:
        with _client(stack) as client:
            while not stopped.is_set():
                flood.send(client, next(numbers)).raise_for_status()
                ended.append(time.monotonic())

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    yield ended
    stopped.set()
    for thread in threads:
        thread.join()


def _client(stack: Stack) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    return httpx2.Client(base_url=stack.api_url, headers=headers, timeout=300, trust_env=False)


def make_nice(model: str, niceness: int) -> None:
    """Set the niceness of every thread of the worker with this model."""
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if "workers" in words and "--model" in words and words[-1].partition("@")[0] == model:
            for thread in process.threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, niceness)


def turn(stack: Stack, options: argparse.Namespace, flood: Flood) -> dict[str, list[float]]:
    """Return the milliseconds of the chats' first tokens, and for embeddings of requests of one text."""
    chat = OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key, max_retries=0)
    found: dict[str, list[float]] = {"chat": [], "small": []}
    with _client(stack) as client:
        for number in range(options.chats):
            found["chat"].append(first_token(chat, CHAT, number).seen_ms)
            if options.task == "embed":
                began = time.perf_counter()
                client.post("/v1/embeddings", json={"model": "minilm", "input": f"mill {number}"}).raise_for_status()
                found["small"].append((time.perf_counter() - began) * 1000)
            time.sleep(0.2)
    return found


def measure(stack: Stack, options: argparse.Namespace, flood: Flood) -> dict[str, Any]:
    """Alternate the turns and return what each has seen."""
    seen: dict[str, dict[str, list[float]]] = {}
    turn(stack, argparse.Namespace(**{**vars(options), "chats": 2}), flood)
    name = Path(flood.model).name
    rates: dict[str, float] = {}
    for mode in [*[ALONE, BESIDE] * options.rounds, NICE]:
        if mode is NICE:
            make_nice(name, 19)
        with flooded(stack, flood, CALLERS if mode is not ALONE else 0) as ended:
            began = time.monotonic()
            for kind, times in turn(stack, options, flood).items():
                seen.setdefault(mode, {}).setdefault(kind, []).extend(times)
            console.log(f"{mode}: {options.chats} chats")
            rates[mode] = len([at for at in ended if at >= began]) / (time.monotonic() - began)
    return {"ms": seen, "flood_requests_per_s": rates}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=FLOODS)
    parser.add_argument("--chats", type=int, default=12, help="in one turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--whisper", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        flood = FLOODS[options.task](Path(scratch), options)
        settings = load_settings()
        # A home of its own, because jobs that an interrupted run left would run now; models are fetched once.
        home = Path(scratch) / "home"
        home.mkdir()
        (settings.home / "models").mkdir(parents=True, exist_ok=True)
        (home / "models").symlink_to((settings.home / "models").absolute())
        with running_stack(settings.model_copy(update={"home": home}), [CHAT, flood.model], console.log) as stack:
            found = measure(stack, options, flood)
    table = Table("", "", "median ms", "p90 ms", "times alone", "flood requests/s", title=options.task)
    for kind in ("chat", "small"):
        for mode, seen in found["ms"].items():
            if times := seen[kind]:
                median, alone = statistics.median(times), statistics.median(found["ms"][ALONE][kind])
                p90, rate = statistics.quantiles(times, n=10)[-1], found["flood_requests_per_s"][mode]
                table.add_row(kind, mode, f"{median:.0f}", f"{p90:.0f}", f"{median / alone:.2f}", f"{rate:.2f}")
    console.print(table)
    print(json.dumps({**vars(options), **found, "machine": cpu_name(), "load": os.getloadavg()}, default=str))


if __name__ == "__main__":
    main()
