"""A short run of ``make celery-kills``: each process is killed at least once."""

import pytest

from tests.chaos.celery_project import run


@pytest.mark.full
def test_no_chain_of_a_celery_project_is_lost_under_kills() -> None:
    outcome = run(150, kills=7, kill_every_s=2.0, timeout_s=240)
    assert outcome.is_good, outcome
    assert len({name for name, _ in outcome.killed}) >= 5, outcome
