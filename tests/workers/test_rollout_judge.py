"""The judge on jobs of two versions that real engines have run: the dispatcher's duty rolls back the bad one."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from headrace.features.rollouts.changes import NewRollout, start
from headrace.features.rollouts.metrics import RolloutMetrics
from headrace.features.rollouts.rollout_keeper import RolloutKeeper
from headrace.features.rollouts.rollouts import Rollout, RolloutState, Step, get_rollout
from headrace.models.engine.runner import Row
from headrace.prompts.tokenizer import ByteTokenizer
from headrace.store.db.database import Database
from headrace.store.jobs.jobs import accept
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion

from .conftest import Bench, StartHost

NUM_JOBS = 45


def breaks_on_a_third(row: Row) -> bool:
    """Return whether the numbers of a row are finite: not for the inputs with a Q."""
    return "Q" not in ByteTokenizer().decode(list(row.request.prompt))


@pytest.fixture
def rollout(db: Database, version: ModelVersion) -> Rollout:
    """A rollout of ``fake`` from version 1 to version 2."""
    models.register_version(
        db,
        model=version.model,
        runner=version.runner,
        source=version.source,
        digest="1" * 64,
        dtype=version.dtype,
        context_window=version.context_window,
        files={},
        actor="tests",
    )
    return start(db, NewRollout(version.model, 2, [Step(50, hold_s=3600)]), "tests")


@pytest.mark.parametrize("is_broken", [True, False], ids=["broken", "good"])
def test_a_version_with_invalid_numbers_is_rolled_back_for_them(
    bench: Bench, start_host: StartHost, version: ModelVersion, rollout: Rollout, is_broken: bool
) -> None:
    for number, runner in ((1, {}), (2, {"is_finite": breaks_on_a_third} if is_broken else {})):
        jobs = [
            bench.new_job(
                prompt=f"tell me of {'Q' if row % 3 == 0 else 'R'} {row:02}",
                rollout_id=rollout.id,
                model_version=number,
                queue=f"fake@{number}",
                sampling={"max_tokens": 2},
            )
            for row in range(NUM_JOBS)
        ]
        accept(bench.db, jobs)
        host = start_host(version=replace(version, version=number), **runner)
        host.run_to_end(*[job.id for job in jobs])
    # The window of these jobs is over, and so are the seconds in which others could be committed.
    bench.query("UPDATE jobs SET created_at = created_at - interval '2 minutes' RETURNING id")
    bench.query("UPDATE rollouts SET started_at = started_at - interval '3 minutes' RETURNING id")
    RolloutKeeper(bench.db, RolloutMetrics(CollectorRegistry())).turn()
    found = get_rollout(bench.db, rollout.id)
    checks = {check["name"]: check for check in found.evidence["checks"]}
    assert checks["invalid_numbers"]["num_pairs"] == NUM_JOBS
    assert checks["invalid_numbers"]["candidate"] == pytest.approx(1 / 3 if is_broken else 0)
    assert (checks["invalid_numbers"]["decision"] == "bad") is is_broken
    # Times are left out of account: on a busy machine either version may be the slow one.
    assert ("invalid numbers" in (found.reason or "")) is is_broken
    assert found.state is RolloutState.ROLLED_BACK or not is_broken
