"""What the terminal says of model hosts: `headrace top`, and the reason of a wait."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from headrace.cli.client.live_screen import LiveScreen
from headrace.cli.client.waiting import what_for

GIB = 1 << 30


def test_top_shows_what_has_a_place_and_the_last_swap() -> None:
    host = {
        "name": "m1",
        "needed_bytes": 3 * GIB,
        "budget_bytes": 4 * GIB,
        "places": [{"queue": "chat@1", "state": "serving"}, {"queue": "embed@2", "state": "starting"}],
        "events": [
            {"at": 0, "queue": "embed@2", "kind": "started", "reason": "it fits"},
            {"at": 0, "queue": "old@1", "kind": "draining", "reason": "idle for 20 s"},
        ],
    }
    screen = LiveScreen("http://api")
    live = {"at": 0, "share": "all", "missing": [], "problems": [], "queues": [], "workers": [], "hosts": [host]}
    screen.take("live", live)
    console = Console(width=100, record=True, file=StringIO())
    console.print(screen)
    text = console.export_text()
    assert "host m1  3.0 of 4.0 GiB  chat@1 serving, embed@2 starting" in text
    assert "old@1 draining: idle for 20 s" in text
    assert "no queues" in text


def test_top_shows_how_many_workers_are_wanted_and_why() -> None:
    load = {"jobs": 0, "tokens": 0}
    queue = {"name": "chat@1", "workers": 1, "running": 0, "queued": load, "oldest_age_s": None, "paused_at": None}
    queue |= {"by_class": {"interactive": load, "standard": load, "batch": load}, "tenants": [], "clears_in_s": None}
    queue |= {"scaling": {"workers": 3, "reason": "9,000 tokens wait", "decided_at": 0}}
    screen = LiveScreen("http://api")
    others = [{**queue, "name": "embed@1", "scaling": None}]
    live = {"at": 0, "share": "all", "missing": [], "problems": [], "workers": [], "hosts": []}
    screen.take("live", {**live, "queues": [queue, *others]})
    console = Console(width=100, record=True, file=StringIO())
    console.print(screen)
    text = console.export_text()
    assert "scale chat@1  workers wanted: 3; 9,000 tokens wait" in text
    assert "scale embed@1" not in text


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"loads_in_s": 11.6, "reason": None}, "chat@1 in about 12 s"),
        ({"loads_in_s": 0.2, "reason": None}, "chat@1 in about 1 s"),
    ],
)
def test_a_wait_for_a_host_says_how_long(host: dict[str, Any], reason: str) -> None:
    job: Any = {"queue": {"name": "chat@1"}}
    assert reason in what_for(job, {"problems": [], "queues": [{"name": "chat@1", "workers": 0, "host": host}]})
