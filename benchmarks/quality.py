"""How far each number format is from float32: ``python -m benchmarks.quality --dtypes float32,bfloat16``.

Perplexity, mean KL divergence to float32 and top-1 agreement over the texts of ``models.loading.quality_texts``, each
version through our own runner. Prints a table and, as its last line, JSON. A version is a number format of the given
folder, or ``FOLDER:DTYPE`` of another one with the same vocabulary.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from models.catalog import fetch
from models.families.model_folder import small_files
from models.loading.quality import Quality, measure_all
from models.loading.quality_texts import TEXTS
from models.loading.torch_load import runner_for
from models.runners.torch_runner import TorchRunner
from prompts.tokenizer import load_tokenizer
from store.settings import Settings, load_settings

console = Console(stderr=True)


def load(version: str, folder: Path, settings: Settings) -> TorchRunner:
    """Return the runner of a version as the command line spells it."""
    other, _, dtype = version.rpartition(":")
    return runner_for(Path(other) if other else folder, settings, dtype=dtype)


def show(versions: Sequence[str], found: Sequence[Quality], folder: Path) -> None:
    """Print the table for people and the JSON for programs."""
    table = Table(title=f"{folder.name}: distance to float32 over {found[0].num_tokens} predictions")
    for heading in ("version", "perplexity", "KL to float32", "top-1 agreement"):
        table.add_column(heading, justify="right")
    for version, each in zip(versions, found, strict=True):
        table.add_row(version, f"{each.perplexity:.3f}", f"{each.kl:.5f}", f"{each.top1:.4f}")
    console.print(table)
    machine = {"threads": torch.get_num_threads(), "processor": platform.processor(), "torch": torch.__version__}
    results = [{"version": version, **asdict(each)} for version, each in zip(versions, found, strict=True)]
    print(json.dumps({"benchmark": "quality", **machine, "model": folder.name, "results": results}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--folder", type=Path, help="a model folder; the demo model if not given")
    parser.add_argument("--dtypes", default="bfloat16", help="comma-separated: number formats, or FOLDER:DTYPE")
    options = parser.parse_args()
    settings = load_settings()
    folder = options.folder or fetch("smollm2", settings.home / "models")
    tokenizer = load_tokenizer(small_files(folder))
    texts = [tokenizer.encode(text, add_special=True) for text in TEXTS]
    reference = load("float32", folder, settings)
    versions = [version for version in options.dtypes.split(",") if version != "float32"]
    candidates = [reference, *(load(version, folder, settings) for version in versions)]
    show(["float32", *versions], measure_all(reference, candidates, texts), folder)


if __name__ == "__main__":
    main()
