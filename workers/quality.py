"""Measures how far a version is from its reference, whose files are loaded and read first.

    reference: load ──▶ read the texts ──▶ free
    version:   load ──▶ read the texts, compare ──▶ serve

Only one of both is in memory at a time. The reference is the version that it was quantized from, or the same files in
float32.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from headrace.models.engine.requests import EngineError
from headrace.models.loading.host_memory import forget_peak
from headrace.models.quality.texts import TEXTS
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere, ModelLoadError, NotFound
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.quality_report import BELOW_BOUND, QualityBound, QualityReport, outside
from headrace.store.settings import Settings
from headrace.workers.tasks.registry import loader_of
from headrace.workers.tasks.task_model import TaskModel

if TYPE_CHECKING:
    from headrace.models.quality.scores import TextScores
    from headrace.models.runners.torch_runner import TorchRunner

log = structlog.get_logger(__name__)

FULL: Final = "float32"
"""The number format of the reference of a version that was quantized from none."""

TEXT_TOKENS = 512
"""Of a longer text the beginning is read: the probabilities of all tokens of a text are in memory together."""

LONGEST_S = 60.0
"""The reference begins no text after so many seconds, and the version reads as many texts as the reference."""

_REFERENCE_POOL = {"kv_pool_tokens": 4096}
"""Settings of a reference: it has few requests, and never many of them."""


def _no_file(digest: str) -> bytes:
    raise NotFound(f"no file {digest}")


def _no_version(name: str) -> ModelVersion:
    raise NotFound(f"no model {name}", code="model_not_found")


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as it read the texts. ``name``: as the report shows it."""

    name: str
    scores: "Sequence[TextScores]"
    took_s: float


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """Measures a version in its verification. ``find``: returns a version by its name; raises NotFound.

    Without a ``version`` nothing is measured.
    """

    settings: Settings | None = None
    version: ModelVersion | None = None
    read_file: ReadFile = _no_file
    find: Callable[[str], ModelVersion] = _no_version

    def reference(self, *, is_needed: bool) -> Reference | str | None:
        """Read the version's reference; None if nothing is to be measured, a sentence if it cannot be measured here.

        Measured are versions that were quantized and, if it ``is_needed`` for a bound, all others. Raises
        CannotLoadHere if it is needed and cannot be measured here.
        """
        version, settings = self.version, self.settings
        if version is None or settings is None or not version.spec.has_sampling:
            return None
        if version.quantized_from is None and not is_needed:
            return None
        try:
            name, original = reference_of(version, self.find)
            found = read_reference(name, original, settings, self.read_file)
        except (ModelLoadError, EngineError) as error:
            if is_needed:
                raise CannotLoadHere(f"its quality cannot be measured here: {error}") from error
            return f"the reference cannot be read here: {error}"
        return found or "the engine shows no probabilities"


UNMEASURED: Final = QualityCheck()


def reference_of(version: ModelVersion, find: Callable[[str], ModelVersion]) -> tuple[str, ModelVersion]:
    """Return the name of a version's reference, and the version to load for it.

    Its own files in float32, if it was quantized from no version, or the registry does not have that any more.
    """
    if version.quantized_from is not None:
        with suppress(NotFound):
            return version.quantized_from, find(version.quantized_from)
    return FULL, replace(version, dtype=FULL)


def quality_fault(report: QualityReport | None, bound: QualityBound | None) -> str | None:
    """Return why a version must be rejected because of its report, if it must."""
    found = None if report is None or bound is None else outside(report, bound)
    return None if found is None else f"{BELOW_BOUND}: {found}"


def read_reference(name: str, version: ModelVersion, settings: Settings, read_file: ReadFile) -> Reference | None:
    """Load a reference, let it read the texts, and free it; None if it shows no probabilities.

    Raises ModelLoadError, EngineError.
    """
    from headrace.models.quality.scores import free_memory  # noqa: PLC0415 - a worker of the fake has no torch

    started_at = time.monotonic()
    try:
        scores = _scores_of(version, settings, read_file)
    finally:
        free_memory()
        forget_peak()
    if scores is None:
        return None
    num_tokens, took_s = sum(len(one.following) for one in scores), time.monotonic() - started_at
    log.info("quality_reference_read", reference=name, num_tokens=num_tokens, took_s=took_s)
    return Reference(name, scores, took_s)


def _scores_of(version: ModelVersion, settings: Settings, read_file: ReadFile) -> "Sequence[TextScores] | None":
    from headrace.models.quality.scores import score_texts  # noqa: PLC0415 - a worker of the fake has no torch

    model = loader_of(version)(version, settings.model_copy(update=_REFERENCE_POOL), read_file)
    try:
        read = _as_tokens(model)
        return None if read is None else score_texts(*read, longest_s=LONGEST_S)
    finally:
        model.close()


def report_of(model: TaskModel, reference: Reference) -> QualityReport | None:
    """Return the report of a loaded version without requests; None if it shows no probabilities. Raises EngineError."""
    from headrace.models.quality.scores import compare, of_itself  # noqa: PLC0415 - a worker of the fake has no torch

    started_at = time.monotonic()
    if (read := _as_tokens(model)) is None:
        return None
    found = compare(reference.scores, *read)
    return QualityReport(
        against=reference.name,
        num_tokens=found.num_tokens,
        kl=round(max(0.0, found.kl), 6),
        agreement=round(found.top1, 6),
        perplexity=round(found.perplexity, 6),
        reference_perplexity=round(of_itself(reference.scores).perplexity, 6),
        took_s=round(time.monotonic() - started_at + reference.took_s, 1),
    )


def _as_tokens(model: TaskModel) -> "tuple[TorchRunner, list[list[int]]] | None":
    """Return a model's runner and the texts as its tokens; None if it shows no probabilities."""
    from headrace.models.runners.torch_runner import TorchRunner  # noqa: PLC0415 - imports torch, which a worker of the fake has not

    runner, tokenizer = model.scorer() or (None, None)
    if tokenizer is None or not isinstance(runner, TorchRunner):
        return None
    longest = min(TEXT_TOKENS, runner.context_window, runner.num_blocks * runner.block_tokens)
    tokens = [tokenizer.encode(text, add_special=True)[:longest] for text in TEXTS]
    return runner, [text for text in tokens if len(text) > 1]
