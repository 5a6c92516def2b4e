"""A version on an inference server is measured beside one on Headrace's engine, as far as the server shows."""

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.models.catalog import register
from headrace.models.external_registration import register_external
from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.quality_report import QualityBound, outside
from headrace.store.registry.quality_view import quality_svg, report_line, report_rows
from headrace.store.registry.verification import Verification
from headrace.store.settings import Settings
from headrace.workers import quality, quality_command
from tests.models.external.fake_sglang import FakeSglang
from tests.models.external.fake_vllm import FakeVllm
from tests.models.tiny import build, save, save_tokenizer

# Without the tokens of two letters, which the fake servers do not have.
TEXTS = ("A boat was on a long, slow path to the coast.", "x = y + z  # sums of two")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tokenizer(save(build("llama"), tmp_path / "tiny"))


@pytest.fixture
def measuring(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(quality, "TEXTS", TEXTS)
    return settings.model_copy(update={"device": "cpu", "kv_pool_tokens": 1024, "native_kernels": "off"})


@pytest.fixture
def vllm() -> Iterator[FakeVllm]:
    with closing(FakeVllm()) as server:
        yield server


def served(db: Database, folder: Path, kind: EngineKind, url: str) -> ModelVersion:
    """Register ``tiny@1`` on Headrace's engine, and ``tiny@2`` on a server that was accepted."""
    register(db, "tiny", str(folder), "float32", actor="tests")
    spec = EngineSpec(kind=kind, url=url, served_model="tiny")
    version = register_external(db, "tiny", spec, source=None, tokenizer=folder, actor="tests")
    verification = Verification(db, "tiny", version.version, worker="w", lease_s=60)
    verification.claim()
    verification.accept_server(kind.value)
    return version


def test_a_vllm_server_is_measured_by_the_log_probabilities_of_prompts(
    db: Database, folder: Path, measuring: Settings, vllm: FakeVllm
) -> None:
    served(db, folder, EngineKind.VLLM, vllm.url)
    with pytest.raises(Conflict, match="give --against"):
        quality_command.measure(db, measuring, "tiny@2")
    report, is_stored = quality_command.measure(db, measuring, "tiny@2", against="tiny@1")
    assert (report.against, report.missing, is_stored) == ("tiny@1", None, True)
    # The fake server gives every token of a prompt the logarithm -0.25.
    assert report.version.perplexity == pytest.approx(math.exp(0.25), abs=1e-5)
    assert report.reference.perplexity is not None
    assert report.num_tokens == sum(map(len, TEXTS)) - len(TEXTS), "one token for each character"
    assert report.agreement is not None
    assert report.agreement < 0.5, "a model with random weights does not know the next tokens"
    assert (report.version.load_s, report.version.memory_bytes, report.disk_bytes) == (None, None, None)
    scored = [call for call in vllm.calls if "prompt_logprobs" in str(call.body)]
    assert len(scored) == len(TEXTS)


@pytest.mark.full
def test_a_server_without_them_has_the_continuations_alone_and_says_why(
    db: Database, folder: Path, measuring: Settings
) -> None:
    with closing(FakeSglang()) as server:
        served(db, folder, EngineKind.SGLANG, server.url)
        report, is_stored = quality_command.measure(db, measuring, "tiny@2", against="tiny@1")
    assert (report.kl, report.agreement, report.version.perplexity, is_stored) == (None, None, None, True)
    assert (report.same_answers, report.num_answers) == (0, 2)
    assert report.version.tokens_per_s
    shown = report.model_dump(mode="json")
    rows = {name: (mine, its) for name, mine, its in report_rows(shown)}
    assert rows["KL divergence"] == ("", "0")
    assert "log-probabilities" in rows["not measured"][0]
    assert report_line(shown).startswith("0 of 2 ")
    assert quality_svg("tiny", {"tiny@2": shown}).startswith("<svg")
    assert outside(report, QualityBound(max_kl=1)) == "KL not measured"


def test_a_chat_server_is_not_measured(db: Database, measuring: Settings) -> None:
    spec = EngineSpec(kind=EngineKind.OPENAI, url="http://127.0.0.1:9", served_model="m", context_window=64)
    register_external(db, "chat", spec, source=None, tokenizer=None, actor="tests")
    with pytest.raises(Conflict, match="plain text"):
        quality_command.measure(db, measuring, "chat@1", against="chat@1")
