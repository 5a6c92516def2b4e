"""A worker verifies a registered version before it takes a job: what is wrong is rejected, for all workers."""

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.models.catalog import register
from headrace.models.families.model_folder import describe
from headrace.store.db.database import Database
from headrace.store.errors import CannotLoadHere, Unavailable, VersionRejected
from headrace.store.registry.models import register_version
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import GoldenAnswer, VerificationReport
from headrace.store.registry.versions import VersionSummary, list_versions
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.store.supervisor import NOT_AGAIN
from headrace.workers.__main__ import load, main
from headrace.workers.tasks.task_model import TaskModel
from headrace.workers.verification import load_verified
from tests.models.tiny import build, save, save_tokenizer
from tests.processes import StartProcess, wait_for
from tests.roles import as_worker

from .conftest import worker_command, worker_environment

SMALL: dict[str, object] = {"device": "cpu", "kv_pool_tokens": 1024, "native_kernels": "off"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in several shards, with a tokenizer."""
    return save_tokenizer(save(build("llama"), tmp_path_factory.mktemp("tiny"), max_shard_size="200KB"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return copytree(original, tmp_path / "model")


@pytest.fixture
def worker_settings(settings: Settings) -> Settings:
    return as_worker(settings).model_copy(update=SMALL)


def registered(db: Database, folder: Path, golden: list[GoldenAnswer] | None = None) -> None:
    register(db, "tiny", str(folder), "float32", actor="tests", golden=golden or ())


def summary(db: Database) -> VersionSummary:
    (found,) = list_versions(db, "tiny")
    return found


def shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def flip_a_byte(folder: Path) -> None:
    content = bytearray(shard(folder).read_bytes())
    content[-1] ^= 1
    shard(folder).write_bytes(content)


def truncate(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-1000])


def pickle_instead(folder: Path) -> None:
    torch.save({}, shard(folder).with_suffix(".bin"))
    shard(folder).unlink()


def not_finite(folder: Path) -> None:
    tensors = load_file(shard(folder))
    name = next(name for name in tensors if "norm" in name or "weight" in name)
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, shard(folder), {"format": "pt"})


def test_a_version_is_verified_once_and_the_report_is_kept(
    db: Database, folder: Path, worker_settings: Settings
) -> None:
    registered(db, folder)
    assert summary(db).state is VersionState.REGISTERED
    load(worker_settings, "tiny")
    first = summary(db)
    report = first.verification
    assert first.state is VersionState.READY
    assert report is not None
    assert (report.golden, report.dtype, report.context_tokens) == ("recorded", "float32", 512)
    assert all(answer.tokens for answer in report.answers)
    assert report.load_s is not None
    assert report.memory_bytes is not None
    assert report.tokens_per_s is not None
    load(worker_settings, "tiny")
    assert summary(db) == first


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip_a_byte, "registered"), (truncate, "registered"), (pickle_instead, "pickled weights")],
)
def test_files_that_changed_are_rejected_until_they_are_restored(
    db: Database, folder: Path, original: Path, worker_settings: Settings, damage: Callable[[Path], None], reason: str
) -> None:
    registered(db, folder)
    damage(folder)
    with pytest.raises(VersionRejected, match=reason):
        load(worker_settings, "tiny")
    found = summary(db)
    assert found.state is VersionState.REJECTED
    assert reason in (found.state_reason or "")
    copytree(original, folder, dirs_exist_ok=True)
    with pytest.raises(VersionRejected):
        load(worker_settings, "tiny")
    registered(db, folder)
    load(worker_settings, "tiny")
    assert summary(db).state is VersionState.READY


@pytest.mark.parametrize(("damage", "reason"), [(truncate, "safetensors"), (not_finite, "not finite")])
def test_weights_that_were_damaged_before_are_rejected(
    db: Database, folder: Path, worker_settings: Settings, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder)
    registered(db, folder)
    with pytest.raises(VersionRejected, match=reason):
        load(worker_settings, "tiny")
    assert summary(db).state is VersionState.REJECTED


def test_a_digest_of_other_files_is_rejected(db: Database, folder: Path, worker_settings: Settings) -> None:
    found = describe(folder)
    register_version(
        db,
        model="tiny",
        runner=found.runner,
        source=str(folder),
        digest="0" * 64,
        dtype="float32",
        context_window=found.context_window,
        files=found.files,
        actor="tests",
    )
    with pytest.raises(VersionRejected, match="registered"):
        load(worker_settings, "tiny")


def test_golden_answers_are_compared(db: Database, folder: Path, worker_settings: Settings) -> None:
    registered(db, folder)
    load(worker_settings, "tiny")
    report = summary(db).verification
    assert report is not None
    first, *rest = report.answers
    other = GoldenAnswer(prompt=first.prompt, tokens=(*first.tokens[:-1], (first.tokens[-1] + 1) % 256))
    for name, golden in (("same", report.answers), ("other", (other, *rest))):
        register(db, name, str(folder), "float32", actor="tests", golden=golden)
    load(worker_settings, "same")
    with pytest.raises(VersionRejected, match=f"token {len(first.tokens)} "):
        load(worker_settings, "other")
    found = {one.model: one.verification for one in list_versions(db)}
    assert [one and one.golden for one in (found["same"], found["other"])] == ["matched", None]


def test_a_machine_without_the_folder_leaves_the_version_to_another(
    db: Database, folder: Path, worker_settings: Settings
) -> None:
    registered(db, folder)
    away = folder.rename(folder.with_name("away"))
    with pytest.raises(CannotLoadHere):
        load(worker_settings, "tiny")
    found = summary(db)
    assert found.state is VersionState.REGISTERED
    assert str(folder) in (found.state_reason or "")
    away.rename(folder)
    load(worker_settings, "tiny")
    assert summary(db).state is VersionState.READY


def test_a_verifier_whose_services_are_away_leaves_the_version_to_another_at_once(
    db: Database, folder: Path, worker_settings: Settings
) -> None:
    registered(db, folder)
    first, second = (Verification(db, "tiny", 1, worker=name, lease_s=60) for name in ("first", "second"))

    def load_nothing() -> TaskModel:
        raise Unavailable("Postgres is away")

    with pytest.raises(Unavailable):
        load_verified(first, load_nothing, worker_settings)
    assert second.claim().is_ours


def test_one_of_two_workers_verifies_and_the_other_one_waits(
    db: Database, folder: Path, worker_settings: Settings
) -> None:
    registered(db, folder)
    first = Verification(db, "tiny", 1, worker="first", lease_s=60)
    assert first.claim().is_ours
    assert summary(db).state is VersionState.VERIFYING
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(load, worker_settings, "tiny")
        assert not second.done()
        assert first.reject("a reason of the first worker", VerificationReport(worker="first"))
        with pytest.raises(VersionRejected, match="a reason of the first worker"):
            second.result(60)


@pytest.mark.full
def test_a_killed_verifier_is_replaced(
    db: Database, folder: Path, worker_settings: Settings, settings: Settings, start_process: StartProcess
) -> None:
    registered(db, folder)
    changes = SMALL | {"environment": "test", "failpoints": "verify.midway=kill", "lease_s": 1}
    killed = start_process(worker_command("tiny"), worker_environment(settings, changes))
    assert killed.wait_exit() == -signal.SIGKILL
    wait_for(lambda: summary(db).state is VersionState.REGISTERED, "its lease is over")
    load(worker_settings, "tiny")
    assert summary(db).state is VersionState.READY


def test_a_worker_of_a_rejected_version_says_why_and_asks_not_to_be_restarted(
    db: Database,
    folder: Path,
    worker_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registered(db, folder)
    flip_a_byte(folder)
    monkeypatch.setattr("headrace.workers.__main__.load_settings", lambda: worker_settings)
    monkeypatch.setattr("headrace.workers.__main__.configure_logging", lambda _level: None)
    assert main(["--model", "tiny"]) == NOT_AGAIN
    assert capsys.readouterr().err.startswith("headrace worker: tiny@1 ")
