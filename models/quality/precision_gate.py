"""The quality gate for number formats: which formats are close enough to float32, and which one ``auto`` means.

Each model is measured once. The report is in the home folder, under the digest of the model files and the name of the
int8 scheme. ``models.quality.scores`` does the measurement.
"""

import json
from dataclasses import asdict
from pathlib import Path

from headrace.models.families.model_folder import folder_digest, small_files
from headrace.models.loading.torch_load import runner_for
from headrace.models.quality.scores import Quality, compare, free_memory, score_texts
from headrace.models.quality.texts import TEXTS
from headrace.models.tensors.quantised import SCHEME
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings

MAX_KL = 0.012
MIN_TOP1 = 0.94
FASTEST_FIRST = ("int8", "bfloat16")

QualityReport = dict[str, Quality]
"""The distance to float32 of each format in ``FASTEST_FIRST`` that is fast on this machine."""


def passes(quality: Quality) -> bool:
    """Return True if a format is close enough to float32."""
    return quality.kl <= MAX_KL and quality.top1 >= MIN_TOP1


def measure(folder: Path, settings: Settings) -> QualityReport:
    """Measure the formats of a model against float32 (about a minute), and store the report.

    Raises ModelLoadError if the model cannot be loaded.
    """
    tokenizer = load_tokenizer(small_files(folder))
    texts = [tokenizer.encode(text, add_special=True) for text in TEXTS]
    runner = runner_for(folder, settings, dtype="float32")
    names = [name for name in FASTEST_FIRST if name != "int8" or runner.model.has_fast_int8]
    reference = score_texts(runner, texts)
    report = {}
    for name in names:
        del runner
        free_memory()
        runner = runner_for(folder, settings, dtype=name)
        report[name] = compare(reference, runner, texts)
    path = _path(folder, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: asdict(quality) for name, quality in report.items()}))
    return report


def read_report(folder: Path, settings: Settings) -> QualityReport | None:
    """Return the report of these files on this machine, or None."""
    try:
        found = json.loads(_path(folder, settings).read_text())
        return {name: Quality(**values) for name, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def choose(report: QualityReport) -> tuple[str, str]:
    """Return the format that ``auto`` means for a measured model, and the reason."""
    for name in FASTEST_FIRST:
        if name in report and passes(report[name]):
            return name, f"the fastest that passes: {describe(report[name])}"
    return "float32", "no faster format is close enough to it"


def require(dtype: str, folder: Path, settings: Settings) -> None:
    """Raise ModelLoadError if ``dtype`` must pass the gate and does not. Measures the model if there is no report."""
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
    """Return a distance as text, with its limit."""
    return f"KL {quality.kl:.4f} of at most {MAX_KL}, top-1 agreement {quality.top1:.3f} of at least {MIN_TOP1}"


def _path(folder: Path, settings: Settings) -> Path:
    return settings.home / "quality" / f"{folder_digest(folder)}.{SCHEME}.json"
