"""Measures the quality report of a version: its reference is loaded and read first, then the version itself.

    reference: load ──▶ read the texts ──▶ free
    version:   load ──▶ read the texts, compare ──▶ serve

Only one of both is in memory at a time. The reference is the version that it was quantized from, or the same files in
float32.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import structlog

from headrace.models.engine.requests import EngineError
from headrace.models.families.model_folder import weight_files
from headrace.models.loading.host_memory import forget_peak, resident_bytes
from headrace.models.quality.texts import TEXTS
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.errors import CannotLoadHere, ModelLoadError, NotFound
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.quality_report import BELOW_BOUND, QualityBound, QualityReport, VersionFigures, outside
from headrace.store.settings import Settings
from headrace.workers.tasks.quality_reading import Reading
from headrace.workers.tasks.registry import loader_of
from headrace.workers.tasks.task_model import TaskModel

log = structlog.get_logger(__name__)

FULL: Final = "float32"
"""The number format of the reference of a version that was quantized from none."""

_REFERENCE_POOL = {"kv_pool_tokens": 4096}
"""Settings of a reference: it has few requests, and never many of them."""


def _no_file(digest: str) -> bytes:
    raise NotFound(f"no file {digest}")


def _no_version(name: str) -> ModelVersion:
    raise NotFound(f"no model {name}", code="model_not_found")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with the seconds to load it, and by how much the memory of the process grew."""

    model: TaskModel
    load_s: float
    memory_bytes: int | None

    @classmethod
    def by(cls, load: Callable[[], TaskModel]) -> Self:
        """Load a model. Raises as ``load``."""
        before, started_at = resident_bytes(), time.monotonic()
        model = load()
        load_s, after = time.monotonic() - started_at, resident_bytes()
        return cls(model, load_s, None if before is None or after is None else max(0, after - before))


@dataclass(frozen=True, slots=True)
class _Read:
    """One side of a comparison."""

    reading: Reading
    figures: VersionFigures


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference as it read the texts. ``name``: as the report shows it."""

    name: str
    texts: Sequence[str]
    read: _Read
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


def read_reference(
    name: str, version: ModelVersion, settings: Settings, read_file: ReadFile, texts: Sequence[str] = ()
) -> Reference | None:
    """Load a reference, let it read the texts, and free it; None if it shows no probabilities.

    ``texts``: by default those of Headrace.
    Raises ModelLoadError, EngineError.
    """
    started_at = time.monotonic()
    texts = texts or TEXTS
    small = settings.model_copy(update=_REFERENCE_POOL)
    loaded = Loaded.by(lambda: loader_of(version)(version, small, read_file))
    try:
        read = _read(loaded, small, texts, None)
    finally:
        loaded.model.close()
        del loaded
        _free()
    took_s = time.monotonic() - started_at
    if read is None:
        return None
    num_tokens = 0 if read.reading.quality is None else read.reading.quality.num_tokens
    log.info("quality_reference_read", reference=name, num_tokens=num_tokens, took_s=took_s)
    return Reference(name, texts, read, took_s)


def report_of(loaded: Loaded, settings: Settings, reference: Reference) -> QualityReport | None:
    """Return the report of a loaded version without requests; None if it shows no probabilities. Raises EngineError."""
    started_at = time.monotonic()
    found = _read(loaded, settings, reference.texts, reference.read.reading)
    if found is None:
        return None
    quality, known, version = found.reading.quality, reference.read, loaded.model.version
    pairs = list(zip(found.reading.answers.tokens, known.reading.answers.tokens, strict=True))
    is_elsewhere = version.engine.is_external and version.engine.weights_digest is None
    return QualityReport(
        against=reference.name,
        num_tokens=0 if quality is None else quality.num_tokens,
        kl=None if quality is None else round(max(0.0, quality.kl), 6),
        agreement=None if quality is None else round(quality.top1, 6),
        missing=found.reading.missing,
        same_answers=sum(one == other for one, other in pairs),
        num_answers=len(pairs),
        disk_bytes=None if is_elsewhere else sum(path.stat().st_size for path in weight_files(Path(version.source))),
        version=found.figures,
        reference=known.figures,
        took_s=round(time.monotonic() - started_at + reference.took_s, 1),
    )


def _read(loaded: Loaded, settings: Settings, texts: Sequence[str], reference: Reading | None) -> _Read | None:
    reading = loaded.model.read_texts(settings, texts, reference)
    if reading is None:
        return None
    is_here = not loaded.model.version.engine.is_external
    figures = VersionFigures(
        dtype=reading.dtype,
        perplexity=None if reading.quality is None else round(reading.quality.perplexity, 6),
        load_s=round(loaded.load_s, 3) if is_here else None,
        memory_bytes=loaded.memory_bytes if is_here else None,
        tokens_per_s=round(reading.answers.tokens_per_s, 1),
        first_token_s=round(reading.answers.first_token_s, 4),
    )
    return _Read(reading, figures)


def _free() -> None:
    from headrace.models.quality.scores import free_memory  # noqa: PLC0415 - a worker of the fake has no torch

    free_memory()
    forget_peak()
