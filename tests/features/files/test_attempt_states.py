"""States of attempts: the next attempt gets the newest, and nothing stays of a job that has ended."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.features.encryption.vault import Vault
from headrace.features.files.attempt_states import MOST_BYTES, AttemptStates
from headrace.store.db.database import Database
from headrace.store.errors import TooLarge
from headrace.store.jobs.claims import Finish, claim, finish
from headrace.store.schema.job_states import JobState
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings
from tests.store.making import QUEUE, AcceptOne

STATE = b"latents of a mill" * 10_000


@pytest.fixture(params=["plain", "sealed"])
def seal(request: pytest.FixtureRequest) -> Seal:
    return PLAIN if request.param == "plain" else Vault({"key": b"k" * 32})


def stored(settings: Settings) -> Sequence[Path]:
    return sorted(one for one in (settings.home / "files" / "attempts").rglob("*") if one.is_file())


def test_the_next_attempt_gets_the_newest_state_of_those_before_it(
    db: Database, settings: Settings, seal: Seal, accept_one: AcceptOne
) -> None:
    first, other = claim(db, "worker", QUEUE, [accept_one(), accept_one()], 30.0).values()
    second, third = replace(first, epoch=2), replace(first, epoch=3)
    states = AttemptStates(settings, seal)
    states.save(first, b"an older one")
    states.save(first, STATE)
    assert len(stored(settings)) == 1
    assert (STATE in stored(settings)[0].read_bytes()) == (seal is PLAIN)
    assert AttemptStates(settings, seal).newest(second) == STATE
    assert states.newest(replace(second, job_id=other.job_id)) is None
    assert states.newest(replace(second, restarts_after=1)) is None, "it was of another version"
    states.save(second, b"of the second")
    states.save(first, b"of an attempt that was lost, and still runs")
    assert states.newest(third) == b"of the second"
    (newest,) = [one for one in stored(settings) if one.name.startswith("2-")]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert states.newest(third) == b"of an attempt that was lost, and still runs", "the newest was cut off"
    with pytest.raises(TooLarge):
        states.save(second, b"0" * (MOST_BYTES + 1))


def test_states_of_jobs_that_run_no_more_are_removed(
    db: Database, settings: Settings, seal: Seal, accept_one: AcceptOne
) -> None:
    ended, running = claim(db, "worker", QUEUE, [accept_one(), accept_one()], 30.0).values()
    states = AttemptStates(settings, seal)
    states.save(ended, STATE)
    states.save(running, STATE)
    outcome = Finish(ended.job_id, ended.epoch, JobState.CANCELLED, None, None, None, tenant_id=ended.tenant_id)
    assert finish(db, [outcome]) == {ended.job_id}
    states.remove_ended(db)
    (left,) = stored(settings)
    assert left.parent.name == running.job_id
    assert not (settings.home / "files" / "attempts" / ended.tenant_id / ended.job_id).exists()
