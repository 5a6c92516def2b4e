"""8 bits only where they are close enough, measured on the model's own files."""

from pathlib import Path

import pytest

from headrace.models.catalog import main
from headrace.models.quality import precision_gate
from headrace.models.quality.scores import Quality
from headrace.store.errors import ModelLoadError
from headrace.store.settings import Settings

GOOD = Quality(perplexity=15.8, kl=0.007, top1=0.95, num_tokens=5000)
FAR = Quality(perplexity=18.7, kl=0.05, top1=0.88, num_tokens=5000)


@pytest.mark.parametrize(
    ("report", "dtype"),
    [
        ({"int8": GOOD, "bfloat16": GOOD}, "int8"),
        ({"int8": FAR, "bfloat16": GOOD}, "bfloat16"),
        ({"int8": Quality(15.8, 0.007, 0.93, 5000), "bfloat16": GOOD}, "bfloat16"),
        ({"bfloat16": GOOD}, "bfloat16"),
        ({"int8": FAR, "bfloat16": FAR}, "float32"),
    ],
)
def test_auto_is_the_fastest_that_passes(report: precision_gate.QualityReport, dtype: str) -> None:
    assert precision_gate.choose(report)[0] == dtype


@pytest.mark.full
def test_what_was_measured_is_found_again(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real model on one short text: bfloat16 passes, and is what ``auto`` means if 8 bits do not."""
    monkeypatch.setattr(precision_gate, "TEXTS", ("The capital of France is Paris, and the capital of Italy is Rome.",))
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_KV_POOL_TOKENS", "1024")
    (tmp_path / "native").symlink_to(Path(__file__).parents[3] / ".headrace" / "native")
    settings = Settings(home=tmp_path)
    assert precision_gate.read_report(smollm2, settings) is None
    assert main(["measure", str(smollm2)]) == 0
    report = precision_gate.read_report(smollm2, settings)
    assert report is not None
    assert report["bfloat16"].num_tokens == report["int8"].num_tokens > 10
    assert 0 < report["bfloat16"].kl < report["int8"].kl
    assert precision_gate.choose(report)[0] in capsys.readouterr().out
    monkeypatch.setattr(precision_gate, "SCHEME", "another")
    assert precision_gate.read_report(smollm2, settings) is None, "another scheme of int8 is measured anew"


def test_int8_is_refused_where_it_is_too_far(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path)
    monkeypatch.setattr(precision_gate, "read_report", lambda folder, settings: {"int8": FAR, "bfloat16": GOOD})
    with pytest.raises(ModelLoadError, match=r"too far from float32 .*KL 0.0500 of at most 0.012"):
        precision_gate.require("int8", smollm2, settings)
    precision_gate.require("bfloat16", smollm2, settings)
