"""The metrics of rollouts are those of their page, each series with its labels and its value."""

import re
from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from headrace.features.rollouts.metrics import Judgement, RolloutMetrics
from headrace.features.rollouts.rollouts import RolloutState
from tests.features.rollouts.test_transitions import ROLLOUT
from tests.metric_names import rows


def series(registry: CollectorRegistry) -> set[str]:
    """The samples on the page."""
    return set(re.findall(r"^headrace_rollout_(?!\w+_created)(.*)$", generate_latest(registry).decode(), re.MULTILINE))


def test_the_page_has_every_metric_that_the_document_lists() -> None:
    registry = CollectorRegistry()
    RolloutMetrics(registry)
    shown = re.findall(r"^# TYPE (headrace_\w+) ", generate_latest(registry).decode(), re.MULTILINE)
    listed = {name for row in rows() if row.process == "Rollouts" for name in row.names}
    assert {name.removesuffix("_created") for name in shown} == {name.removesuffix("_created") for name in listed}


def test_the_active_rollouts_are_shown_while_this_dispatcher_leads() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    began = series(registry)
    assert began == {
        *(f'transitions_total{{action="{one}"}} 0.0' for one in ("advanced", "promoted", "aborted", "rolled_back")),
        "jobs_moved_total 0.0",
    }
    for _ in range(2):  # the second replaces the first
        metrics.show_rollouts([replace(ROLLOUT, state=RolloutState.PAUSED)])
        metrics.show_judgements([Judgement("tiny", "default", 12.5, 3)])
    assert series(registry) - began == {
        'percent{alias="default",model="tiny",state="paused"} 10.0',
        'overdue_seconds{alias="default",model="tiny"} 12.5',
        'undecided_checks{alias="default",model="tiny"} 3.0',
    }
    metrics.clear()
    assert series(registry) == began
