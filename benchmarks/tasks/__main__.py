"""Texts a second of embeddings, rerank and classify beside what people use instead: ``python -m benchmarks.tasks``.

Every contestant gets the same texts of mixed lengths, tokenises them, and computes in float32 with the same torch and
the same threads, by turns after a warm-up. ``sentence-transformers`` runs in a process and an environment of its own.
``budget`` is a batcher that fills a batch in the order of arrival up to a number of tokens, as Text Embeddings
Inference does, and pads it. ``loop`` computes batches of 32 in the order given with transformers. Ours is the engine
with the inputs as one request. Rerank and classify have MiniLM's weights with a random head: their speed is that of a
trained one. At the end a request of one text is timed alone and beside one of thousands. Prints a table and, as its
last line, JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.tasks.encoding import sentences
from benchmarks.venvs import CannotInstall, environment, versions
from headrace.features.encoders.classifier_folder import read_classifier
from headrace.features.encoders.embed.inputs import embed_inputs, read_embedder
from headrace.features.encoders.embed.task import EmbedInput
from headrace.features.encoders.fitted_inputs import fit_texts
from headrace.features.encoders.torch_classifier import classifier_for
from headrace.features.encoders.torch_encoder import encoder_for
from headrace.models.catalog import fetch
from headrace.models.engine.encoder_engine import EncodeConfig, EncodeEngine
from headrace.models.engine.requests import EncodeRequest
from headrace.models.engine.runner import Encoder
from headrace.models.families.model_folder import small_files
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.settings import Settings, load_settings

BATCH = 32
BUDGET_TOKENS = 16_384
MAX_TOKENS = 256
LABELS = 5

Inputs = Sequence[Any]
Turn = Callable[[Inputs], torch.Tensor]


def with_head(folder: Path, to: Path, labels: int) -> Path:
    """Write the encoder with a random head of ``labels`` numbers, and return its folder."""
    torch.manual_seed(1)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, dtype=torch.float32)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


class Baseline:
    """transformers' model and tokenizer. ``finish`` makes the numbers of the model's output and the mask."""

    def __init__(self, auto: Any, folder: Path, finish: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self._finish = finish
        self.padding = 0
        self.tokens = 0

    def loop(self, inputs: Inputs) -> torch.Tensor:
        """Batches of 32 in the order given."""
        return torch.cat([self._batch(inputs[first : first + BATCH]) for first in range(0, len(inputs), BATCH)])

    def budget(self, inputs: Inputs) -> torch.Tensor:
        """Batches of at most so many tokens, in the order given."""
        lengths = [min(len(ids), MAX_TOKENS) for ids in self._tokens(inputs)["input_ids"]]
        batches: list[list[Any]] = [[]]
        spent = 0
        for one, length in zip(inputs, lengths, strict=True):
            if batches[-1] and spent + length > BUDGET_TOKENS:
                batches.append([])
                spent = 0
            batches[-1].append(one)
            spent += length
        return torch.cat([self._batch(batch) for batch in batches])

    def _tokens(self, inputs: Inputs, **options: Any) -> Any:
        texts = list(inputs) if isinstance(inputs[0], str) else [tuple(pair) for pair in inputs]
        return self._tokenizer(texts, truncation=True, max_length=MAX_TOKENS, **options)

    @torch.inference_mode()
    def _batch(self, inputs: Inputs) -> torch.Tensor:
        given = self._tokens(inputs, padding=True, return_tensors="pt")
        mask = given["attention_mask"]
        self.tokens += int(mask.sum())
        self.padding += mask.numel() - int(mask.sum())
        return self._finish(self._model(**given), mask)


def mean_vectors(output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Normalised means over the tokens."""
    weights = mask[:, :, None].float()
    return normalize((output.last_hidden_state * weights).sum(1) / weights.sum(1), dim=1)


def _config(settings: Settings) -> EncodeConfig:
    return EncodeConfig(settings.max_slots, settings.encode_tokens, settings.encode_pass_ms / 1000)


class Ours:
    """The engine as a worker has it, with one encoder."""

    def __init__(self, encoder: Encoder, tokens: Callable[[Inputs], tuple[tuple[tuple[int, ...], ...], Any]]) -> None:
        settings = load_settings()
        self._tokens = tokens
        self.engine = EncodeEngine(encoder, _config(settings))
        self.engine.start()

    def submit(self, name: str, inputs: Inputs) -> Any:
        """Return the future of a request."""
        ids, types = self._tokens(inputs)
        return self.engine.submit(EncodeRequest(name, ids, types))

    def whole(self, inputs: Inputs) -> torch.Tensor:
        """One request."""
        vectors = self.submit("all", inputs).result().vectors
        return torch.stack([torch.frombuffer(bytearray(vector), dtype=torch.float32) for vector in vectors])

    @property
    def waste(self) -> float:
        """The part of the computed positions that was padding."""
        stats = self.engine.stats()
        return stats.padding_tokens / (stats.padding_tokens + stats.prompt_tokens)


def our_embedder(folder: Path) -> Ours:
    """The encoder with its pooling."""
    files = small_files(folder)
    embedder, tokenizer = read_embedder(files), load_tokenizer(files)

    def tokens(texts: Inputs) -> Any:
        found = [
            embed_inputs(
                tokenizer, embedder, EmbedInput(texts=tuple(texts[first : first + 2048])), truncate=True
            ).inputs
            for first in range(0, len(texts), 2048)
        ]
        return tuple(ids for part in found for ids in part), None

    return Ours(encoder_for(folder, load_settings(), dtype="float32"), tokens)


def our_classifier(folder: Path) -> Ours:
    """A classifier or a reranker."""
    files = small_files(folder)
    settings, tokenizer = read_classifier(files), load_tokenizer(files)
    window = min(settings.context_window, MAX_TOKENS)

    def tokens(texts: Inputs) -> Any:
        found = [fit_texts(tokenizer, one, window, "input", truncate=True).encoded for one in texts]
        return tuple(one.ids for one in found), tuple(one.type_ids for one in found)

    return Ours(classifier_for(folder, load_settings(), dtype="float32"), tokens)


class Peer:
    """The child with sentence-transformers."""

    def __init__(self, python: Path, encoder: Path, reranker: Path, place: Path) -> None:
        # -P: this folder has modules with names of the standard library's.
        argv = [str(python), "-P", str(Path(__file__).with_name("sentence_peer.py")), str(encoder), str(reranker)]
        self._child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._place = place
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the process with sentence-transformers ended")
        answer: dict[str, float] = json.loads(line)
        return answer

    def run(self, task: str, inputs: Inputs, *, keep: bool = False) -> tuple[dict[str, float], torch.Tensor | None]:
        """Return the seconds, and the numbers if they are to be kept."""
        texts, numbers = self._place / "texts.json", self._place / "numbers.json"
        texts.write_text(json.dumps(list(inputs)))
        assert self._child.stdin is not None
        asked = {"task": task, "texts": str(texts), "numbers": str(numbers) if keep else None}
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        took = self._answer()
        return took, torch.tensor(json.loads(numbers.read_text())) if keep else None

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


@contextmanager
def peer_of(encoder: Path, reranker: Path, place: Path) -> Iterator[Peer | None]:
    """Start the child; None if it cannot be installed."""
    try:
        python = environment("sentence-transformers", Console(stderr=True).print) / "python"
    except CannotInstall as error:
        Console(stderr=True).print(f"sentence-transformers: {error}")
        yield None
        return
    peer = Peer(python, encoder, reranker, place)
    yield peer
    peer.close()


@dataclass
class Figures:
    """Texts a second and a CPU second of each round, and the part of the computed positions that was padding."""

    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)
    waste: float | None = None

    def add(self, count: int, wall_s: float, cpu_s: float) -> None:
        """Add a round."""
        self.per_s.append(count / wall_s)
        self.per_cpu_s.append(count / cpu_s)


def rounds_of(task: str, inputs: Inputs, turns: dict[str, Turn], peer: Peer | None, rounds: int) -> dict[str, Figures]:
    """Let the contestants take turns, after a warm-up of each with some of the inputs."""
    warm = inputs[:BATCH]
    found = {name: Figures() for name in turns}
    for turn in turns.values():
        turn(warm)
    if peer is not None:
        found["sentence-transformers"] = Figures()
        peer.run(task, warm)
    for _ in range(rounds):
        for name, turn in turns.items():
            began, cpu = time.perf_counter(), time.process_time()
            turn(inputs)
            found[name].add(len(inputs), time.perf_counter() - began, time.process_time() - cpu)
        if peer is not None:
            took, _ = peer.run(task, inputs)
            found["sentence-transformers"].add(len(inputs), took["s"], took["cpu_s"])
    return found


def beside(ours: Ours, texts: Sequence[str], count: int) -> dict[str, Any]:
    """Return the ms of requests of one text: alone, and beside a request of ``count`` texts that is then cancelled."""

    def each() -> list[float]:
        took = []
        for number in range(10):
            began = time.perf_counter()
            ours.submit(f"small-{number}", [texts[number]]).result()
            took.append((time.perf_counter() - began) * 1000)
        return took

    alone = each()
    big = ours.submit("big", [texts[number % len(texts)] for number in range(count)])
    time.sleep(0.5)
    together = each()
    was_running = not big.done()
    ours.engine.cancel("big")
    big.result()
    return {"alone_ms": alone, "beside_ms": together, "big_inputs": count, "big_was_running": was_running}


def tasks_of(folder: Path, place: Path) -> dict[str, tuple[Ours, Baseline]]:
    """Return ours and the baseline of each task."""
    reranker = with_head(folder, place / "reranker", 1)
    labels = with_head(folder, place / "labels", LABELS)
    heads = AutoModelForSequenceClassification
    return {
        "embed": (our_embedder(folder), Baseline(AutoModel, folder, mean_vectors)),
        "rerank": (our_classifier(reranker), Baseline(heads, reranker, lambda out, _: out.logits.sigmoid()[:, 0])),
        "classify": (our_classifier(labels), Baseline(heads, labels, lambda out, _: out.logits.softmax(-1))),
    }


def pairs_of(texts: Sequence[str]) -> list[list[str]]:
    """Return each text with the shortest one as its query, so that no pair has to be cut."""
    query = min(texts, key=len)
    return [[query, text] for text in texts]


def equality(tasks: dict[str, tuple[Ours, Baseline]], peer: Peer | None, texts: Sequence[str]) -> dict[str, float]:
    """Return how far apart the numbers are: the lowest cosine of vectors, and the largest difference of scores."""
    pairs = pairs_of(texts[: len(texts) // 4])
    found: dict[str, float] = {}
    if peer is not None:
        _, theirs = peer.run("embed", texts, keep=True)
        assert theirs is not None
        found["embed_lowest_cosine"] = float((tasks["embed"][0].whole(texts) * theirs).double().sum(1).min())
        _, theirs = peer.run("rerank", pairs, keep=True)
        assert theirs is not None
        found["rerank_most_apart"] = float((tasks["rerank"][0].whole(pairs)[:, 0] - theirs).abs().max())
    some = texts[: len(texts) // 4]
    ours, baseline = tasks["classify"]
    found["classify_most_apart"] = float((ours.whole(some) - baseline.loop(some)).abs().max())
    return found


def speeds(
    tasks: dict[str, tuple[Ours, Baseline]], peer: Peer | None, texts: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Return the figures of each task and contestant."""
    found: dict[str, Any] = {}
    for name, (ours, baseline) in tasks.items():
        inputs: Inputs = pairs_of(texts) if name == "rerank" else texts
        other = "loop" if name == "classify" else "budget"
        turns: dict[str, Turn] = {"headrace": ours.whole, other: getattr(baseline, other)}
        figures = rounds_of(name, inputs, turns, peer if name != "classify" else None, rounds)
        figures["headrace"].waste = ours.waste
        figures[other].waste = baseline.padding / (baseline.padding + baseline.tokens)
        found[name] = {contestant: asdict(each) for contestant, each in figures.items()}
    return found


def measure(options: argparse.Namespace, folder: Path, place: Path) -> dict[str, Any]:
    """Measure the chosen parts and return them."""
    tasks = tasks_of(folder, place)
    speed = sentences(options.texts, seed=1)
    result: dict[str, Any] = {}
    with peer_of(folder, place / "reranker", place) if options.part != "beside" else nullcontext() as peer:
        if options.part in ("all", "speed"):
            result["speed"] = speeds(tasks, peer, speed, options.rounds)
        if options.part in ("all", "equal"):
            result["equal"] = equality(tasks, peer, sentences(options.equal, seed=2))
        if peer is not None:
            result["versions"] = versions("sentence-transformers")
    if options.part in ("all", "beside"):
        result["small_beside_big"] = beside(tasks["embed"][0], speed, options.big)
    for ours, _ in tasks.values():
        ours.engine.stop(1.0)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("task", "contestant", "texts/s", "texts/CPU s", "headrace is times this", "padding")
    for task, figures in result.get("speed", {}).items():
        ours = statistics.median(figures["headrace"]["per_cpu_s"])
        for name, found in figures.items():
            rate, per_cpu_s = statistics.median(found["per_s"]), statistics.median(found["per_cpu_s"])
            waste = "" if found["waste"] is None else f"{found['waste']:.1%}"
            table.add_row(task, name, f"{rate:.1f}", f"{per_cpu_s:.1f}", f"{ours / per_cpu_s:.2f}", waste)
    Console(stderr=True, width=120).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Embeddings, rerank and classify, beside others.")
    parser.add_argument("--folder", type=Path, help="of a BERT encoder with mean pooling; by default the catalog's")
    parser.add_argument("--part", choices=("all", "speed", "equal", "beside"), default="all")
    parser.add_argument("--texts", type=int, default=128, help="for the speed")
    parser.add_argument("--equal", type=int, default=2000, help="texts that are compared")
    parser.add_argument("--big", type=int, default=5000, help="inputs of the request beside the small one")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    folder = options.folder or fetch("minilm", load_settings().home / "models")
    with tempfile.TemporaryDirectory() as place:
        result = measure(options, folder.absolute(), Path(place))
    show(result)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}
    print(json.dumps({**vars(options), **result, "threads": torch.get_num_threads(), **about}, default=str))


if __name__ == "__main__":
    main()
