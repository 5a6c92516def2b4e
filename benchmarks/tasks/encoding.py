"""Sentences a second through the encoder's engine, beside transformers' own model: ``-m benchmarks.tasks.encoding``.

Each contestant gets the same texts of mixed lengths and tokenises them; turns alternate in one process, with the same
torch threads, after a warm-up. ``padded`` is the usual loop, batches of 32 in the order given; ``sorted`` is what
sentence-transformers does, the same batches by length. Ours gets them as one request, or as many of one text each with
no more at a time than there are slots. Prints a table and, as its last line, JSON.
"""

import argparse
import json
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from headrace.features.encoders.embed.inputs import embed_inputs, read_embedder
from headrace.features.encoders.embed.task import EmbedInput
from headrace.features.encoders.torch_encoder import encoder_for
from headrace.models.catalog import fetch
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import EncodeOutput, EncodeRequest
from headrace.models.families.model_folder import small_files
from headrace.models.quality.texts import TEXTS
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import load_settings

BATCH = 32
MOST_CHARS = 500

Turn = Callable[[Sequence[str]], torch.Tensor]


def sentences(count: int, seed: int) -> list[str]:
    """Return texts of one to eight sentences, most of them short, none longer than MiniLM's 256 tokens."""
    found = [one for text in TEXTS for one in re.split(r"(?<=[.!?])\s+", text) if len(one) > 10]
    rng = random.Random(seed)
    return [" ".join(rng.sample(found, rng.choice((1, 1, 1, 1, 2, 2, 4, 8))))[:MOST_CHARS] for _ in range(count)]


class Reference:
    """Transformers' model and tokenizer, as its documentation shows them."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def padded(self, texts: Sequence[str]) -> torch.Tensor:
        """Batches in the order given."""
        return torch.cat([self._batch(texts[first : first + BATCH]) for first in range(0, len(texts), BATCH)])

    def sorted(self, texts: Sequence[str]) -> torch.Tensor:
        """Batches by length in characters."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors = self.padded([texts[place] for place in order])
        return vectors[torch.tensor(order).argsort()]

    def _batch(self, texts: Sequence[str]) -> torch.Tensor:
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        hidden = self._model(**given).last_hidden_state
        mask = given["attention_mask"][:, :, None].float()
        return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


class Ours:
    """The engine as a worker has it."""

    def __init__(self, folder: Path) -> None:
        settings = load_settings()
        self._embedder = read_embedder(small_files(folder))
        self._tokenizer = load_tokenizer(small_files(folder))
        self._slots = settings.max_slots
        self.engine = EncodeEngine(
            encoder_for(folder, settings, dtype="float32"), EncodeConfig(settings.max_slots, settings.encode_tokens)
        )
        self.engine.start()

    def whole(self, texts: Sequence[str]) -> torch.Tensor:
        """One request."""
        return self._read([self._submit("all", texts)])

    def single(self, texts: Sequence[str]) -> torch.Tensor:
        """A request for each text."""
        futures: list[Future[EncodeOutput]] = []
        running: set[Future[EncodeOutput]] = set()
        for number, text in enumerate(texts):
            if len(running) == self._slots:
                running = set(wait(running, return_when=FIRST_COMPLETED).not_done)
            futures.append(self._submit(str(number), [text]))
            running.add(futures[-1])
        return self._read(futures)

    def _submit(self, name: str, texts: Sequence[str]) -> Future[EncodeOutput]:
        inputs = embed_inputs(self._tokenizer, self._embedder, EmbedInput(texts=tuple(texts))).inputs
        return self.engine.submit(EncodeRequest(name, inputs))

    @staticmethod
    def _read(futures: Sequence[Future[EncodeOutput]]) -> torch.Tensor:
        vectors = [vector for future in futures for vector in future.result().vectors]
        return torch.stack([torch.frombuffer(bytearray(vector), dtype=torch.float32) for vector in vectors])


@dataclass
class Figures:
    """What one contestant showed: sentences a second and a CPU second by round, and its lowest cosine to the first."""

    cosine: float
    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)


def measure(turns: dict[str, Turn], texts: Sequence[str], rounds: int) -> dict[str, Figures]:
    """Let the contestants take turns, after a warm-up."""
    expected = next(iter(turns.values()))(texts)
    found = {name: Figures(float((turn(texts) * expected).sum(1).min())) for name, turn in turns.items()}
    for _ in range(rounds):
        for name, turn in turns.items():
            began, cpu = time.perf_counter(), time.process_time()
            turn(texts)
            found[name].per_cpu_s.append(len(texts) / (time.process_time() - cpu))
            found[name].per_s.append(len(texts) / (time.perf_counter() - began))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Sentences a second, beside transformers.")
    parser.add_argument("--folder", type=Path, help="of an encoder with mean pooling; by default MiniLM of the catalog")
    parser.add_argument("--sentences", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = options.folder or fetch("minilm", load_settings().home / "models")
    texts = sentences(options.sentences, seed=1)
    reference, ours = Reference(folder, read_embedder(small_files(folder)).context_window), Ours(folder)
    turns: dict[str, Turn] = {
        "transformers, padded": reference.padded,
        "transformers, sorted": reference.sorted,
        "headrace, one request": ours.whole,
        "headrace, a request each": ours.single,
    }
    figures = measure(turns, texts, options.rounds)
    ours.engine.stop(1.0)
    table = Table("contestant", "sentences/s", "of padded", "sentences/CPU s", "lowest cosine")
    base = statistics.median(figures["transformers, padded"].per_s)
    for name, found in figures.items():
        rate, per_cpu_s = statistics.median(found.per_s), statistics.median(found.per_cpu_s)
        table.add_row(name, f"{rate:.0f}", f"{rate / base:.2f}", f"{per_cpu_s:.0f}", f"{found.cosine:.6f}")
    Console(stderr=True).print(table)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    told = {name: asdict(found) for name, found in figures.items()}
    print(json.dumps({"figures": told, "threads": torch.get_num_threads(), **about, **vars(options)}, default=str))


if __name__ == "__main__":
    main()
