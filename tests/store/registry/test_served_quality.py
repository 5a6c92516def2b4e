"""The quality bound of a model keeps versions on inference servers from aliases and rollouts."""

from typing import Any

import pytest

from headrace.store.db.database import Database
from headrace.store.errors import Conflict
from headrace.store.registry import versions
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import resolve
from headrace.store.registry.quality_bounds import keep_report, set_bound
from headrace.store.registry.quality_report import QualityBound, QualityReport, VersionFigures
from headrace.store.registry.verification import Verification
from headrace.store.rollouts.changes import NewRollout, change, start
from headrace.store.rollouts.rollouts import RolloutMode, Step
from headrace.store.rollouts.transitions import RolloutAction, Transition
from tests.refusals import Naming
from tests.store.registry.test_models import register

BOUND = QualityBound(min_agreement=0.97, max_kl=0.02)


def served(db: Database, kind: EngineKind) -> None:
    """Register ``tiny@1`` on Headrace's engine, and ``tiny@2`` on a server that was accepted.

    Another model has versions of the same numbers.
    """
    register(db)
    spec = EngineSpec(kind=kind, url="http://127.0.0.1:9", served_model="tiny", context_window=64)
    register(db, digest="d2", runner=kind.value, engine=spec)
    for digest in ("d1", "d2"):
        register(db, model="beside", digest=digest, runner=kind.value, engine=spec)
    set_bound(db, "beside", BOUND, "tests")
    verification = Verification(db, "tiny", 2, worker="w", lease_s=60)
    verification.claim()
    verification.accept_server(kind.value)


def measured(db: Database, **figures: Any) -> None:
    side = VersionFigures(dtype="float32", perplexity=figures.pop("perplexity", None))
    report = QualityReport(
        against="tiny@1", num_tokens=1, same_answers=1, num_answers=1, version=side, reference=side, took_s=1, **figures
    )
    assert keep_report(db, "tiny", 2, report)


def point(db: Database) -> None:
    versions.set_alias(db, "tiny", "default", 2, "tests")


def begin(db: Database, **changes: Any) -> str:
    values: dict[str, Any] = {"model": "tiny", "candidate": 2, "steps": [Step(10, hold_s=60)]}
    return start(db, NewRollout(**{**values, **changes}), "tests").id


def refused(run: Any, db: Database) -> tuple[str, str]:
    with pytest.raises(Conflict) as error:
        run(db)
    return error.value.code, error.value.message


def test_a_version_on_vllm_gets_an_alias_when_it_was_measured_and_is_within_the_bound(db: Database) -> None:
    served(db, EngineKind.VLLM)
    set_bound(db, "tiny", BOUND, "tests")
    for run in (point, begin):
        code, message = refused(run, db)
        assert (code, message) == ("quality_not_measured", Naming("tiny@2 --against"))
    shadow = begin(db, mode=RolloutMode.SHADOW)  # gives it no caller's job
    change(db, shadow, Transition(RolloutAction.ABORT, "enough"), "tests")
    measured(db, agreement=0.95, kl=0.01)
    for run in (point, begin):
        code, message = refused(run, db)
        assert (code, message) == ("quality_below_bound", Naming("agreement 0.9500", "0.97"))
    measured(db, agreement=0.98, kl=0.01)
    point(db)
    assert resolve(db, "tiny").version == 2


def test_a_bound_that_is_set_during_a_rollout_stops_its_promotion(db: Database) -> None:
    served(db, EngineKind.VLLM)
    rollout = begin(db)
    set_bound(db, "tiny", BOUND, "tests")
    promote = Transition(RolloutAction.PROMOTE, "good")
    assert refused(lambda _: change(db, rollout, promote, "tests"), db)[0] == "quality_not_measured"
    assert resolve(db, "tiny").version == 1
    measured(db, agreement=0.98, kl=0.01)
    change(db, rollout, promote, "tests")
    assert resolve(db, "tiny").version == 2


@pytest.mark.parametrize("kind", [EngineKind.SGLANG, EngineKind.OPENAI])
def test_what_a_server_does_not_show_is_not_judged(db: Database, kind: EngineKind) -> None:
    served(db, kind)
    set_bound(db, "tiny", BOUND, "tests")
    point(db)
    versions.set_alias(db, "tiny", "default", 1, "tests")
    measured(db, missing="no log-probabilities")
    point(db)
    versions.set_alias(db, "tiny", "default", 1, "tests")
    measured(db, agreement=0.95)
    assert refused(point, db)[0] == "quality_below_bound", "what it shows is judged"
