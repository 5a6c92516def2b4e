"""The quality of a version is measured beside its reference, and a model's bound rejects what is too far from it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from headrace.models.catalog import register
from headrace.models.families.model_folder import describe, small_files
from headrace.models.tensors import quantised
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.db.database import Database
from headrace.store.errors import CannotLoadHere, VersionRejected
from headrace.store.registry.models import register_version
from headrace.store.registry.quality_bounds import set_bound
from headrace.store.registry.quality_report import QualityBound, QualityReport
from headrace.store.registry.versions import VersionSummary, list_versions
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.workers import quality
from headrace.workers.__main__ import load
from tests.models.tiny import build, save, save_tokenizer
from tests.roles import as_worker

WINDOW = 64
TEXTS = ("The river is wide here, and the ferry is late again.", "def add(a, b):\n    return a + b  # of numbers")
BOUND = QualityBound(min_agreement=0.8, max_kl=0.2, max_perplexity_ratio=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that is sure of its next tokens, as a trained one is, with a tokenizer."""
    model = build("llama")
    model.config.max_position_embeddings = WINDOW
    with torch.no_grad():
        model.lm_head.weight *= 3
    return save_tokenizer(save(model, tmp_path_factory.mktemp("sure")))


@pytest.fixture
def worker_settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(quality, "TEXTS", TEXTS)
    small = {"device": "cpu", "kv_pool_tokens": 1024, "native_kernels": "off"}
    return as_worker(settings).model_copy(update=small)


def quantized(db: Database, folder: Path, dtype: str) -> None:
    """Register the files of ``tiny@1`` in another number format."""
    found = describe(folder)
    register_version(
        db,
        model="tiny",
        runner=found.runner,
        source=str(folder),
        digest=found.digest,
        dtype=dtype,
        context_window=found.context_window,
        files=found.files,
        quantized_from="tiny@1",
        actor="tests",
    )


def summary(db: Database, version: int) -> VersionSummary:
    return next(one for one in list_versions(db, "tiny") if one.version == version)


def report_of(db: Database, version: int) -> QualityReport:
    found = summary(db, version).verification
    assert found is not None
    assert found.quality is not None, found.not_measured
    return found.quality


def test_a_quantized_version_is_measured_against_the_one_that_it_came_from(
    db: Database, folder: Path, worker_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (TEXTS[0] * 3, TEXTS[1])  # the first does not fit the context window
    monkeypatch.setattr(quality, "TEXTS", texts)
    register(db, "tiny", str(folder), "float32", actor="tests")
    quantized(db, folder, "bfloat16")
    load(worker_settings, "tiny@2")
    report = report_of(db, 2)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = load_tokenizer(small_files(folder))
    losses, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text, add_special=True)[:WINDOW]])
        with torch.inference_mode():
            losses += reference(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert (report.against, report.num_tokens) == ("tiny@1", count)
    assert report.reference_perplexity == pytest.approx(torch.tensor(losses / count).exp().item(), rel=1e-3)
    assert report.perplexity_ratio == pytest.approx(1, abs=0.05)
    assert 0 < report.kl < 0.1
    assert 0.9 < report.agreement <= 1
    load(worker_settings, "tiny@1")
    original = summary(db, 1).verification
    assert original is not None
    assert original.quality is None, "without a bound only a quantized version is measured"


def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth scale is twice as large."""
    sound = quantised.quantise

    def damaged(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, scales = sound(values)
        scales = scales.clone()
        scales.view(-1)[::5] *= 2
        return numbers, scales

    monkeypatch.setattr(quantised, "quantise", damaged)


def test_damaged_scales_are_rejected_and_verified_anew_when_they_are_mended(
    db: Database, folder: Path, worker_settings: Settings
) -> None:
    register(db, "tiny", str(folder), "float32", actor="tests")
    set_bound(db, "tiny", BOUND, "tests")
    quantized(db, folder, "int8")
    with pytest.MonkeyPatch.context() as patched:
        damage(patched)
        with pytest.raises(VersionRejected, match="quality_below_bound: top-1 agreement"):
            load(worker_settings, "tiny@2")
    found, bad = summary(db, 2), report_of(db, 2)
    assert found.state is VersionState.REJECTED
    assert f"KL {bad.kl:.4f} " in (found.state_reason or "")
    quantized(db, folder, "int8")
    load(worker_settings, "tiny@2")
    good = report_of(db, 2)
    assert summary(db, 2).state is VersionState.READY
    assert good.kl < bad.kl
    assert good.agreement > bad.agreement


@pytest.mark.full
def test_a_bound_measures_every_version_against_float32(db: Database, folder: Path, worker_settings: Settings) -> None:
    register(db, "tiny", str(folder), "bfloat16", actor="tests")
    set_bound(db, "tiny", QualityBound(max_kl=1e-9), "tests")
    with pytest.raises(VersionRejected, match="quality_below_bound: KL"):
        load(worker_settings, "tiny@1")
    assert report_of(db, 1).against == "float32"
    set_bound(db, "tiny", None, "tests")
    register(db, "tiny", str(folder), "bfloat16", actor="tests")
    load(worker_settings, "tiny@1")
    assert summary(db, 1).state is VersionState.READY


@pytest.mark.parametrize("bound", [None, BOUND])
def test_a_machine_that_cannot_read_the_reference_judges_nothing(
    db: Database,
    folder: Path,
    worker_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    bound: QualityBound | None,
) -> None:
    register(db, "tiny", str(folder), "float32", actor="tests")
    set_bound(db, "tiny", bound, "tests")
    quantized(db, folder, "bfloat16")

    def too_big(*_: object) -> None:
        raise CannotLoadHere("too little memory")

    monkeypatch.setattr(quality, "read_reference", too_big)
    if bound is None:
        load(worker_settings, "tiny@2")
        found = summary(db, 2).verification
        assert found is not None
        assert "too little memory" in str(found.not_measured)
    else:
        with pytest.raises(CannotLoadHere, match="too little memory"):
            load(worker_settings, "tiny@2")
        assert summary(db, 2).state is VersionState.REGISTERED
