"""Which versions are measured, beside which reference, and when that is a fault."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace.models.engine.requests import NumericalError
from headrace.store.errors import CannotLoadHere, ModelLoadError, NotFound
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.quality_report import QualityBound, QualityReport
from headrace.store.settings import Settings
from headrace.workers import quality
from headrace.workers.quality import QualityCheck, quality_fault, reference_of
from tests.refusals import Naming

ANY: Any = None
VLLM = EngineSpec(kind=EngineKind.VLLM, served_model="x", url="http://gpu:8000")


def test_the_reference_is_the_version_before_or_the_same_files_in_float32(version: ModelVersion) -> None:
    other = replace(version, version=9)
    quantized = replace(version, quantized_from="fake@9", dtype="int8")

    def gone(name: str) -> ModelVersion:
        raise NotFound(name)

    assert reference_of(quantized, lambda name: other) == ("fake@9", other)
    assert reference_of(quantized, gone) == ("float32", replace(quantized, dtype="float32"))
    assert reference_of(version, gone) == ("float32", replace(version, dtype="float32"))


def test_only_a_report_outside_its_bound_is_a_fault() -> None:
    report = QualityReport(
        against="x", num_tokens=1, kl=0.5, agreement=1, perplexity=2, reference_perplexity=2, took_s=1
    )
    assert quality_fault(report, QualityBound(max_kl=0.4)) == Naming("quality_below_bound", "0.5000", "0.4")
    assert quality_fault(report, QualityBound(max_kl=0.5)) is None
    assert [quality_fault(report, None), quality_fault(None, QualityBound(max_kl=0.4))] == [None, None]


def failing(error: Exception) -> Callable[..., Any]:
    def read(*_: Any, **__: Any) -> Any:
        raise error

    return read


def test_a_version_is_measured_if_it_was_quantized_or_has_a_bound(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(quality, "read_reference", lambda name, original, *_: asked.append((name, original.dtype)))
    plain = QualityCheck(Settings(), version)
    quantized = QualityCheck(Settings(), replace(version, quantized_from="gone@1"))
    encoder = QualityCheck(Settings(), replace(version, runner="fake-encoder", task="embed"))
    assert [one.reference(is_needed=False) for one in (plain, encoder, QualityCheck())] == [None] * 3
    assert (asked, encoder.reference(is_needed=True)) == ([], None)
    shown = Naming("no probabilities")
    assert [plain.reference(is_needed=True), quantized.reference(is_needed=False)] == [shown, shown]
    assert asked == [("float32", "float32")] * 2
    for error in (ModelLoadError("no memory"), NumericalError("not finite")):
        monkeypatch.setattr(quality, "read_reference", failing(error))
        assert str(error) in str(quantized.reference(is_needed=False))
        with pytest.raises(CannotLoadHere) as needed:
            plain.reference(is_needed=True)
        assert str(error) in needed.value.message
