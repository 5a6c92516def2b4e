"""A short run of ``make media-kills``: each process and the storage are killed at least once."""

import pytest

from tests.chaos.media_jobs import run


@pytest.mark.full
def test_jobs_that_make_files_end_once_with_the_same_bytes_under_kills() -> None:
    outcome = run(100, kills=7, kill_every_s=3.0, timeout_s=240)
    assert outcome.is_good, outcome
    assert len(outcome.kills) == 7, outcome
