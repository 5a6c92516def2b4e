"""The verdict of a worker on the version that it loads: accepted, rejected, or given up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from headrace.store.errors import CannotLoadHere, ModelLoadError, Unavailable, VersionRejected
from headrace.store.registry.verification import VersionStanding
from headrace.store.registry.verification_report import GoldenAnswer, VerificationReport
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.workers import verification
from headrace.workers.quality import UNMEASURED
from headrace.workers.tasks.self_test import SelfTest
from headrace.workers.tasks.task_model import TaskModel
from headrace.workers.verification import load_served, load_verified


class Standing:
    """The verification of ``tiny@1`` in a scripted registry; it notes each report."""

    name, worker, lease_s = "tiny@1", "w1", 60.0

    def __init__(self, *answers: VersionStanding, holds: bool = True) -> None:
        self.answers = [*answers]
        self.holds = holds
        self.told: list[tuple[Any, ...]] = []

    def claim(self) -> VersionStanding:
        return self.answers.pop(0)

    def renew(self) -> bool:
        return True

    def give_up(self, reason: str) -> None:
        self.told.append(("given up", reason))

    def accept(self, report: VerificationReport) -> bool:
        self.told.append(("accepted", report))
        return self.holds

    def reject(self, reason: str, report: VerificationReport) -> bool:
        self.told.append(("rejected", reason))
        return self.holds


OURS = VersionStanding(VersionState.REGISTERED, None, (), True)
THEIRS = replace(OURS, is_ours=False)
READY = VersionStanding(VersionState.READY, None, (), False)
REJECTED = VersionStanding(VersionState.REJECTED, "its weights are pickled", (), False)


class Model:
    """A loaded model with the result of its self-test."""

    def __init__(self, test: SelfTest | Exception) -> None:
        self.test = test
        self.is_closed = False

    def self_test(self, _settings: Settings, _golden: Any) -> SelfTest:
        if isinstance(self.test, Exception):
            raise self.test
        return self.test

    def close(self) -> None:
        self.is_closed = True


def verified(standing: Standing, load: Callable[[], Any]) -> TaskModel:
    given: Any = standing
    return load_verified(given, load, Settings(), UNMEASURED)


def raising(error: Exception) -> Callable[[], TaskModel]:
    def load() -> TaskModel:
        raise error

    return load


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "LOOK_S", 0.0)


ANSWERS = (GoldenAnswer(prompt="x", tokens=(1,)),)


@pytest.mark.parametrize(("golden", "told"), [((), "recorded"), (ANSWERS, "matched")])
def test_a_version_that_passes_is_accepted_with_its_figures(golden: Any, told: str) -> None:
    model = Model(SelfTest(ANSWERS, "float32", 12.345, 64))
    standing = Standing(THEIRS, replace(OURS, golden=golden))
    assert verified(standing, lambda: model) is cast(Any, model)
    ((verb, report),) = standing.told
    assert (verb, report.worker, report.dtype, report.tokens_per_s, report.context_tokens) == (
        "accepted",
        "w1",
        "float32",
        12.3,
        64,
    )
    assert (report.golden, report.answers, report.quality) == (told, ANSWERS, None)
    assert report.memory_bytes > 1 << 20
    assert not model.is_closed


def test_a_version_with_a_fault_is_rejected_and_its_model_is_freed() -> None:
    model = Model(SelfTest(fault="token 1 is another"))
    standing = Standing(OURS)
    with pytest.raises(VersionRejected) as rejected:
        verified(standing, lambda: model)
    assert "token 1 is another" in rejected.value.message
    assert (standing.told, model.is_closed) == ([("rejected", "token 1 is another")], True)
    standing = Standing(OURS)
    with pytest.raises(VersionRejected, match=r"tiny@1 .*: the files are others"):
        verified(standing, raising(ModelLoadError("the files are others")))
    assert standing.told == [("rejected", "the files are others")]
    standing = Standing(REJECTED)
    with pytest.raises(VersionRejected, match=r"tiny@1 .*: its weights are pickled"):
        verified(standing, raising(AssertionError("not loaded")))


def test_a_machine_that_cannot_load_a_version_gives_it_up() -> None:
    standing = Standing(OURS)
    with pytest.raises(CannotLoadHere, match="too little memory"):
        verified(standing, raising(CannotLoadHere("too little memory")))
    assert standing.told == [("given up", "too little memory")]


def test_a_verdict_that_comes_too_late_is_forgotten_and_that_of_another_counts() -> None:
    late, model = Model(SelfTest()), Model(SelfTest())
    loads = iter([late, model])
    standing = Standing(OURS, READY, holds=False)
    assert verified(standing, lambda: next(loads)) is cast(Any, model)
    faulty = Model(SelfTest(fault="a fault"))
    standing = Standing(OURS, REJECTED, holds=False)
    with pytest.raises(VersionRejected, match="its weights are pickled"):
        verified(standing, lambda: faulty)
    assert faulty.is_closed


def test_a_version_on_a_server_is_given_up_if_its_server_cannot_be_used_and_rejected_by_nobody() -> None:
    ready: Any = Standing(READY)
    model: Any = Model(SelfTest())
    assert load_served(ready, lambda note: note("described") or model, Settings()) is model
    rejected: Any = Standing(REJECTED)
    with pytest.raises(VersionRejected, match="its weights are pickled"):
        load_served(rejected, lambda _note: model, Settings())
    ours: Any = Standing(OURS)
    with pytest.raises(ModelLoadError, match="another model"):
        load_served(ours, lambda _note: raising(ModelLoadError("another model"))(), Settings())
    assert ours.told == [("given up", "another model")]
    away: Any = Standing(OURS)
    with pytest.raises(Unavailable):
        load_served(away, lambda _note: raising(Unavailable("away"))(), Settings())
    assert away.told == []
