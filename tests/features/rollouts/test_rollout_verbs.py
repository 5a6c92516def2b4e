"""The commands of rollouts that write files."""

from pathlib import Path

from tests.cli.client.api_objects import ROLLOUT
from tests.cli.client.played import Commands, api, headrace

__all__ = ["api", "headrace"]


def test_the_evidence_of_a_rollout_is_drawn_into_a_file(headrace: Commands, tmp_path: Path) -> None:
    answers = {"GET /v1/rollouts/rollout_1": ROLLOUT, "GET /v1/rollouts/rollout_1/plot": "<svg>r</svg>"}
    headrace("rollout show rollout_1 --plot r.svg", answers)
    assert (tmp_path / "r.svg").read_text() == "<svg>r</svg>"
