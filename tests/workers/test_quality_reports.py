"""Quality reports of versions from readings that a test gives: figures, references, faults, and the printed table."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.models.engine.requests import NumericalError
from headrace.store.errors import CannotLoadHere, Conflict, InvalidRequest, ModelLoadError, NotFound
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.quality_report import QualityBound, QualityReport, VersionFigures
from headrace.store.settings import Settings
from headrace.workers import quality, quality_command
from headrace.workers.quality import Loaded, QualityCheck, Reference, quality_fault, reference_of, report_of
from headrace.workers.tasks.quality_reading import Answers, Reading
from tests.refusals import Naming

ANY: Any = None
VLLM = EngineSpec(kind=EngineKind.VLLM, served_model="x", url="http://gpu:8000")


def reading(*answers: tuple[int, ...], dtype: str = "int8", measured: bool = True, **figures: float) -> Reading:
    values = {"kl": 0.01234567, "top1": 0.98765432, "perplexity": 7.1234567, "num_tokens": 40} | figures
    found: Any = SimpleNamespace(**values) if measured else None
    return Reading(dtype, (), found, Answers(answers, 12.345, 0.123456), None if measured else "it shows none")


def loaded(version: ModelVersion, read: Reading | None) -> Loaded:
    model: Any = SimpleNamespace(version=version, read_texts=lambda *_: read)
    return Loaded(model, 1.23456, 7_000)


@pytest.fixture
def here(version: ModelVersion, tmp_path: Path) -> ModelVersion:
    (tmp_path / "model.safetensors").write_bytes(bytes(11))
    return replace(version, source=str(tmp_path))


def reference(*answers: tuple[int, ...]) -> Reference:
    figures = VersionFigures(dtype="float32", perplexity=7.0)
    read: Any = SimpleNamespace(reading=reading(*answers, dtype="float32"), figures=figures)
    return Reference("tiny@1", ("a text",), read, 2.5)


def test_a_report_has_the_figures_of_both_sides(here: ModelVersion) -> None:
    found = report_of(loaded(here, reading((1, 2), (3,))), Settings(), reference((1, 2), (4,)))
    assert found is not None
    assert found.model_dump(exclude={"took_s"}) == {
        "against": "tiny@1",
        "num_tokens": 40,
        "kl": 0.012346,
        "agreement": 0.987654,
        "missing": None,
        "same_answers": 1,
        "num_answers": 2,
        "disk_bytes": 11,
        "version": {
            "dtype": "int8",
            "perplexity": 7.123457,
            "load_s": 1.235,
            "memory_bytes": 7_000,
            "tokens_per_s": 12.3,
            "first_token_s": 0.1235,
        },
        "reference": VersionFigures(dtype="float32", perplexity=7.0).model_dump(),
    }
    assert found.took_s >= 2.5
    negative = report_of(loaded(here, reading((1,), kl=-1e-9)), Settings(), reference((1,)))
    assert negative is not None
    assert negative.kl == 0
    assert report_of(loaded(here, None), Settings(), reference((1,))) is None


def test_a_report_of_a_server_has_no_figures_of_this_machine(here: ModelVersion) -> None:
    served = replace(here, engine=VLLM)
    found = report_of(loaded(served, reading((1,), measured=False)), Settings(), reference((1,)))
    assert found is not None
    assert (found.kl, found.agreement, found.num_tokens, found.missing) == (None, None, 0, "it shows none")
    assert (found.disk_bytes, found.version.load_s, found.version.memory_bytes) == (None, None, None)
    own = replace(here, engine=VLLM.model_copy(update={"weights_digest": "d"}))
    known = report_of(loaded(own, reading((1,))), Settings(), reference((1,)))
    assert known is not None
    assert known.disk_bytes == 11


def test_the_reference_is_the_version_before_or_the_same_files_in_float32(version: ModelVersion) -> None:
    other = replace(version, version=9)
    quantized = replace(version, quantized_from="fake@9", dtype="int8")

    def gone(name: str) -> ModelVersion:
        raise NotFound(name)

    assert reference_of(quantized, lambda name: other) == ("fake@9", other)
    assert reference_of(quantized, gone) == ("float32", replace(quantized, dtype="float32"))
    assert reference_of(version, gone) == ("float32", replace(version, dtype="float32"))


def test_only_a_report_outside_its_bound_is_a_fault() -> None:
    figures = VersionFigures(dtype="int8")
    report = QualityReport(
        against="x", num_tokens=1, kl=0.5, same_answers=1, num_answers=1, version=figures, reference=figures, took_s=1
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


@pytest.mark.parametrize(
    ("changes", "against", "reason"),
    [
        ({"engine": VLLM}, None, "--against"),
        (
            {"engine": EngineSpec(kind=EngineKind.OPENAI, served_model="x", url="http://gpu:8000")},
            "fake@1",
            "chat server",
        ),
        ({}, None, "no model"),
        ({"engine": VLLM, "quantized_from": "served@1"}, "served@1", "served@1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], against: str | None, reason: str
) -> None:
    served = replace(version, model="served", engine=VLLM)
    known = {"fake@1": replace(version, **changes), "served@1": served}
    monkeypatch.setattr(quality_command, "resolve", lambda _db, name, with_retired: known[name])
    with pytest.raises(Conflict) as refused:
        quality_command.measure(ANY, Settings(), "fake@1", against=against)
    assert reason in refused.value.message


def test_a_table_is_printed_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures = VersionFigures(dtype="int8", perplexity=7.5, load_s=1.25, memory_bytes=2_000_000, tokens_per_s=12.0)
    report = QualityReport(
        against="float32",
        num_tokens=40,
        kl=0.01,
        agreement=0.99,
        same_answers=3,
        num_answers=4,
        version=figures,
        reference=figures,
        took_s=12.4,
    )
    given = Settings(database_url="postgresql://x@localhost/y", redis_url="redis://y")
    monkeypatch.setattr(quality_command, "load_settings", lambda: given)
    asked: list[Any] = []

    def measure(_db: Any, _settings: Any, name: str, *, against: str | None, texts: Any) -> tuple[QualityReport, bool]:
        asked.append((name, against, texts))
        return report, against is None

    monkeypatch.setattr(quality_command, "measure", measure)
    (tmp_path / "t.jsonl").write_text('{"text": "two words"}\n')
    assert quality_command.main(["tiny@2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["tiny@2", "float32"],
        ["number", "format", "int8", "int8"],
        ["perplexity", "7.500", "7.500"],
    ]
    assert {len(line) for line in lines[:-1]} == {66}
    assert ("40 predictions" in lines[-1], "stored" in lines[-1]) == (True, True)
    words = ["tiny@2", "--against", "tiny@1", "--texts", str(tmp_path / "t.jsonl")]
    assert quality_command.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**report.model_dump(mode="json"), "stored": False}
    assert quality_command.main(words) == 0
    assert "stored" not in capsys.readouterr().out
    assert asked == [("tiny@2", None, ()), *[("tiny@2", "tiny@1", ("two words",))] * 2]
    monkeypatch.setattr(quality_command, "measure", failing(Conflict("it cannot be measured")))
    assert quality_command.main(["tiny@2"]) == 1
    assert capsys.readouterr().err == "headrace: it cannot be measured\n"


def test_a_file_of_texts_has_bounds_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    line = '{"text": "two words"}\n'
    path.write_text(line * 1000)
    assert len(quality_command.read_texts_file(path)) == 1000
    path.write_text(line * 1001)
    with pytest.raises(InvalidRequest, match="1001 texts"):
        quality_command.read_texts_file(path)
    with pytest.raises(InvalidRequest, match=r"gone\.jsonl"):
        quality_command.read_texts_file(tmp_path / "gone.jsonl")
