"""How steps of a rollout are written on the command line."""

import pytest

from headrace.features.rollouts.rollout_verbs import read_steps
from headrace.store.errors import InvalidRequest


def test_steps_have_a_time_a_number_of_jobs_or_both() -> None:
    assert read_steps("0.5:90s, 10:500jobs,50:2h+20jobs") == [
        {"percent": 0.5, "hold_s": 90},
        {"percent": 10.0, "hold_s": 0, "min_jobs": 500},
        {"percent": 50.0, "hold_s": 7200, "min_jobs": 20},
    ]


@pytest.mark.parametrize("text", ["", "10", "10:", "10:5", "ten:5m", "10:5m,", "10:5y"])
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"10:30m\+500jobs"):
        read_steps(text)
