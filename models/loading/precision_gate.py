"""Which number formats are faithful enough to a model, measured once for its files, and which one ``auto`` means.

A report lies in the home folder under the digest of the model's files and the meaning of int8. Knows what is good
enough, and what is faster; how the distance is measured is ``models.loading.quality``'s.
"""

import json
from dataclasses import asdict
from pathlib import Path

from models.families.model_folder import folder_digest, small_files
from models.loading.quality import Quality, measure_all
from models.loading.quality_texts import TEXTS
from models.loading.torch_load import runner_for
from models.native.llama import NativeLlama
from models.tensors.quantised import SCHEME
from prompts.tokenizer import load_tokenizer
from store.errors import ModelLoadError
from store.settings import Settings

MOST_KL = 0.012
LEAST_TOP1 = 0.94
FASTEST_FIRST = ("int8", "bfloat16")

Report = dict[str, Quality]
"""The distance to float32 of each format in ``FASTEST_FIRST`` that runs fast on this machine."""


def passes(quality: Quality) -> bool:
    """Return True if a format is close enough to float32."""
    return quality.kl <= MOST_KL and quality.top1 >= LEAST_TOP1


def measure(folder: Path, settings: Settings) -> Report:
    """Measure a model folder's formats against float32 (about a minute), and keep the report.

    Raises ModelLoadError if the model cannot be loaded.
    """
    tokenizer = load_tokenizer(small_files(folder))
    texts = [tokenizer.encode(text, add_special=True) for text in TEXTS]
    reference = runner_for(folder, settings, dtype="float32")
    names = [name for name in FASTEST_FIRST if name != "int8" or isinstance(reference.model, NativeLlama)]
    candidates = [runner_for(folder, settings, dtype=name) for name in names]
    report = dict(zip(names, measure_all(reference, candidates, texts), strict=True))
    path = _path(folder, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: asdict(quality) for name, quality in report.items()}))
    return report


def read_report(folder: Path, settings: Settings) -> Report | None:
    """Return what was measured of these files on this machine, or None."""
    try:
        found = json.loads(_path(folder, settings).read_text())
        return {name: Quality(**values) for name, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def choose(report: Report) -> tuple[str, str]:
    """Return what ``auto`` means for a model that was measured, and why."""
    for name in FASTEST_FIRST:
        if name in report and passes(report[name]):
            return name, f"the fastest that passes: {describe(report[name])}"
    return "float32", "no faster format is close enough to it"


def require(dtype: str, folder: Path, settings: Settings) -> None:
    """Raise ModelLoadError if ``dtype`` is a format behind the gate and does not pass; measures if nobody has."""
    if dtype != "int8":
        return
    report = read_report(folder, settings) or measure(folder, settings)
    if dtype not in report:
        raise ModelLoadError("int8 needs the CPU kernels, which do not run this model here: use bfloat16")
    if not passes(report[dtype]):
        raise ModelLoadError(
            f"{dtype} is too far from float32 for this model ({describe(report[dtype])}): use bfloat16"
        )


def describe(quality: Quality) -> str:
    """Return a distance in words, beside what is allowed."""
    return f"KL {quality.kl:.4f} of at most {MOST_KL}, top-1 agreement {quality.top1:.3f} of at least {LEAST_TOP1}"


def _path(folder: Path, settings: Settings) -> Path:
    return settings.home / "quality" / f"{folder_digest(folder)}.{SCHEME}.json"
