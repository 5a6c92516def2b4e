"""All that ``headrace top`` draws of one state, line by line, without a server."""

import re
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from headrace.cli import render
from headrace.cli.bars import level, sparkline
from headrace.cli.client import waiting
from headrace.cli.client.live_screen import LiveScreen
from headrace.cli.client.waiting import what_for
from headrace.client import ConnectionLost

AT = datetime.fromisoformat("2026-11-29T09:05:07.042").timestamp()
"""In the local time, in which the screen shows it."""


def job(number: int, rank: int, tokens: int, attempt: int = 1) -> dict[str, Any]:
    return {"id": f"job_{number}", "class_rank": rank, "output_tokens": tokens, "max_tokens": 16, "attempt": attempt}


WORKER: dict[str, Any] = {
    "id": "celery@mill:7:boot",
    "queue": "tiny@1",
    "health": "late",
    "slots": 4,
    "total_blocks": 40,
    "free_blocks": 10,
    "lease_age_s": 7.6,
    "lease_s": 10,
    "seen_age_s": 2,
    "engine": "vllm",
    "jobs": [job(1, 0, 0), job(2, 1, 8), job(3, 2, 16)],
}
QUEUE: dict[str, Any] = {
    "name": "tiny@1",
    "paused_at": None,
    "workers": 0,
    "running": 1234,
    "queued": {"jobs": 5678},
    "oldest_age_s": 61.4,
    "clears_in_s": 5400,
    "by_class": {name: {"jobs": jobs} for jobs, name in enumerate(("interactive", "standard", "batch"), 1)},
    "tenants": [{"id": "t_1", "name": "acme", "jobs": 4000}, {"id": "t_2", "name": None, "jobs": 1678}],
    "scaling": {"workers": 3, "reason": "much waits"},
}
IDLE = QUEUE | {"name": "big@2", "queued": {"jobs": 0}, "paused_at": 1, "scaling": None, "oldest_age_s": None}
POINT = {
    "tokens_per_s": 1234.5,
    "first_token_p50_ms": 250,
    "first_token_p95_ms": 2500,
    "occupancy": 0.5,
}
HOST: dict[str, Any] = {
    "name": "mill",
    "needed_bytes": 3 << 30,
    "budget_bytes": 4 << 30,
    "places": [{"queue": "tiny@1", "state": "ready"}, {"queue": "big@2", "state": "loading"}],
    "events": [
        {"kind": "started", "at": AT, "queue": "big@2", "reason": "waits"},
        {"kind": "failed", "at": AT, "queue": "old@1", "reason": "no memory"},
        {"kind": "draining", "at": AT, "queue": "tiny@1", "reason": "idle"},
    ],
}
STATE: dict[str, Any] = {
    "at": AT,
    "share": "all",
    "missing": ["redis"],
    "problems": [{"kind": "no_worker", "text": "no worker serves tiny@1"}],
    "queues": [QUEUE, IDLE],
    "hosts": [HOST, HOST | {"name": "rest", "places": [], "events": []}],
    "workers": [WORKER],
}
HISTORY = {"points": [POINT | {"tokens_per_s": 0}, POINT], "speeds": []}


def drawn(screen: LiveScreen, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(screen)
    return [re.sub(r" {2,}", "  ", line.strip()) for line in captured.get().splitlines()]


def screen(state: dict[str, Any] | None = STATE) -> LiveScreen:
    found = LiveScreen("http://api")
    found.take("history", HISTORY)
    found.take("note", {})
    if state is not None:
        found.take("live", state)
    return found


def test_a_wide_screen_has_every_figure() -> None:
    assert drawn(screen(), 150) == [
        "headrace  http://api  09:05:07  all tenants",
        "the API cannot read redis",
        "! no worker serves tiny@1",
        "tokens/s  1,234  █",
        "first token p50 250 ms  p95 2.5 s  ██",
        "occupancy  50%  ▄▄",
        "",
        "queue  workers  running  waiting  oldest  clears in  interactive/standard/batch  most from",
        "tiny@1  0  1,234  5,678  61 s  2 h  1/2/3  acme 4,000, t_2 1,678",
        "big@2  paused  1,234  0  –  –  1/2/3  acme 4,000, t_2 1,678",
        "scale tiny@1  workers wanted: 3; much waits",
        "host mill  3.0 of 4.0 GiB  tiny@1 ready, big@2 loading",
        "09:05:07  old@1 failed: no memory",
        "host rest  3.0 of 4.0 GiB  no worker",
        "",
        "i interactive  s standard  b batch  ░ reads its prompt  · free slot",
        "tiny@1  mill · 7  late  3 of 4 slots  KV 75%  lease 7.6 s of 10 s  heartbeat 2.0 s  vllm",
        "i░s▄b█ ·",
    ]


def test_a_narrow_screen_leaves_columns_out_and_a_tenant_sees_no_other() -> None:
    own = STATE | {"share": "own", "missing": [], "problems": [], "hosts": [], "queues": [QUEUE | {"scaling": None}]}
    lines = drawn(screen(own), 120)
    assert lines[0] == "headrace  http://api  09:05:07  your tenant only"
    assert lines[5:7] == [
        "queue  workers  running  waiting  oldest  clears in  interactive/standard/batch",
        "tiny@1  0  1,234  5,678  61 s  2 h  1/2/3",
    ]
    assert drawn(screen(own), 99)[5] == "queue  workers  running  waiting  oldest  clears in"
    assert drawn(screen(own), 59)[5:7] == ["queue  waiting  oldest", "tiny@1  5,678  61 s"]


def test_what_is_not_known_is_said() -> None:
    empty = LiveScreen("http://api")
    assert drawn(empty, 100) == ["headrace  http://api"]
    empty.lost = "no answer"
    assert drawn(empty, 100)[1].startswith("no answer")
    bare = STATE | {"missing": [], "problems": [], "queues": [], "hosts": [], "workers": []}
    empty.take("live", bare)
    assert drawn(empty, 100) == [
        "headrace  http://api  09:05:07  all tenants",
        "tokens/s  0",
        "first token p50 –  p95 –",
        "occupancy  –",
        "",
        "no queues: no model is registered",
        "",
        "i interactive  s standard  b batch  ░ reads its prompt  · free slot",
        "no worker reports its jobs",
    ]
    few = {"health": "ok", "total_blocks": 0, "lease_age_s": None, "engine": None, "jobs": [], "slots": 1}
    empty.take("live", bare | {"workers": [WORKER | few]})
    assert drawn(empty, 100)[-2:] == ["tiny@1  mill · 7  0 of 1 slots  heartbeat 2.0 s", "·"]


def test_a_job_keeps_its_cell_until_it_ends() -> None:
    first = screen()
    assert drawn(first, 150)[-1] == "i░s▄b█ ·"
    first.take("live", STATE | {"workers": [WORKER | {"jobs": [job(3, 2, 16), job(4, 0, 1), job(2, 1, 8)]}]})
    assert drawn(first, 150)[-1] == "i▁s▄b█ ·"
    first.take("live", STATE | {"workers": [WORKER | {"jobs": [job(3, 2, 16)]}]})
    assert drawn(first, 150)[-1] == "· ·b█ ·"
    first.take("live", STATE | {"workers": []})
    drawn(first, 150)
    first.take("live", STATE | {"workers": [WORKER | {"jobs": [job(3, 2, 16)]}]})
    assert drawn(first, 150)[-1] == "b█ · · ·"


def coloured(state: dict[str, Any]) -> dict[str, str]:
    """The texts of a screen that have a colour of their own."""
    console = Console(width=150, color_system="standard", force_terminal=True)
    found = [one for line in console.render_lines(screen(state)) for one in line if one.style and one.style.color]
    return {one.text.strip(): str(one.style) for one in found if one.text.strip()}


def test_a_colour_says_that_a_person_shall_look() -> None:
    problems = [{"kind": kind, "text": kind} for kind in ("no_worker", "lease_late")]
    loud = coloured(STATE | {"problems": problems, "workers": [WORKER | {"health": "stalled", "seen_age_s": 5.1}]})
    assert {name: colour for name, colour in loud.items() if name[:1] not in "▁▂▃▄▅▆▇█░"} == {
        "the API cannot read redis": "bold red",
        "! no_worker": "red",
        "! lease_late": "yellow",
        "0": "red",
        "paused": "yellow",
        "stalled": "bold red",
        "lease 7.6 s of 10 s": "red",
        "heartbeat 5.1 s": "red",
    }
    calm = WORKER | {"health": "ok", "lease_age_s": 7.5, "seen_age_s": 5.0}
    queues = [QUEUE | {"queued": {"jobs": 0}}, QUEUE | {"workers": 1}]
    quiet = coloured(STATE | {"missing": [], "problems": [], "queues": queues, "workers": [calm]})
    assert [name for name in quiet if name[:1] not in "▁▂▃▄▅▆▇█░"] == []


def test_lines_of_a_narrow_screen_end_at_its_edge() -> None:
    many = STATE | {"hosts": [HOST | {"events": [HOST["events"][1] | {"reason": "n" * 99}]}], "workers": []}
    assert drawn(screen(many), 30)[0] == "headrace  http://api  09:05:0…"
    cut = [line for line in drawn(screen(many), 30) if line.startswith(("scale", "host", "09:05:07"))]
    assert [line[-1] for line in cut] == ["…", "…", "…"]


def test_bars_are_filled_by_their_share() -> None:
    assert [level(share) for share in (-1, 0, 0.06, 0.07, 0.5, 0.94, 1, 2)] == [" ", " ", " ", "▁", "▄", "█", "█", "█"]
    assert sparkline([0, None, 4, 8], 9, 8) == "  ▄█"
    assert sparkline([1, 8, None, 2], 2, 8) == "█▂"
    assert sparkline([0.0], 5, 0.0) == " "


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.9994, "999 ms"),
        (1, "1.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "2 h"),
        (129_599, "36 h"),
        (129_600, "2 d"),
        (10 * 86_400, "10 d"),
    ],
)
def test_a_length_of_time_is_told_in_the_unit_that_fits(seconds: float | None, told: str) -> None:
    assert render.duration(seconds) == told


def test_times_and_workers_are_told_as_in_the_console() -> None:
    assert (render.clock(AT), render.clock(AT, with_ms=True)) == ("09:05:07", "09:05:07.042")
    assert render.worker_name("celery@mill:7:boot") == "mill · 7"
    assert render.worker_name("plain") == "plain"


VERSION: dict[str, Any] = {"state_reason": "rejected by hand", "verification": None}


def test_a_verification_is_one_line() -> None:
    assert render.verification_text(VERSION) == "rejected by hand"
    assert render.verification_text(VERSION | {"state_reason": None}) == ""
    found = {
        "server": "vllm 0.32",
        "dtype": "float32",
        "load_s": 0.0,
        "memory_bytes": 2.5e9,
        "context_tokens": 8192,
        "tokens_per_s": 99.6,
        "golden": "agree",
    }
    assert render.verification_text({"state_reason": None, "verification": found}) == (
        "vllm 0.32, float32, loaded in 0.0 s, 2.5 GB, 8,192 tokens a request, 100 tokens/s, golden answers agree"
    )


Q = {"name": "q@1", "workers": 2, "running": 7, "host": None}
PAUSED = {"queue": "q@1", "kind": "paused", "cause": "the queue is paused"}
NO_WORKER = {"queue": "q@1", "kind": "no_worker", "cause": "no worker serves the queue"}
FULL = {"queue": "q@1", "kind": "full", "cause": "slots"}
LATE = {"queue": "q@1", "kind": "worker_late", "cause": None}
ELSEWHERE = {**PAUSED, "queue": "other"}


@pytest.mark.parametrize(
    ("changes", "problems", "reason"),
    [
        ({}, [LATE, PAUSED], "headrace queues resume q@1"),
        ({}, [NO_WORKER], "headrace worker --model q@1"),
        ({}, [FULL], "slots"),
        ({}, [ELSEWHERE, LATE], "place 3 in q@1"),
        ({"queue": {"name": "q@1", "position": None}}, [], "q@1, 7 running"),
        ({"queue": {"name": "gone@1", "position": None}}, [], "gone@1"),
        (
            {"queue": {"name": "q@1", "position": None}, "parent_id": "job_p"},
            [PAUSED],
            "job_p",
        ),
        ({"parent_id": "job_p"}, [PAUSED], "headrace queues resume q@1"),
    ],
)
def test_a_wait_has_a_reason(changes: dict[str, Any], problems: list[dict[str, Any]], reason: str) -> None:
    job: Any = {"queue": {"name": "q@1", "position": 3}, "parent_id": None, **changes}
    assert reason in what_for(job, {"problems": problems, "queues": [{**Q, "name": "other"}, Q]})


def test_a_reason_is_repeated_only_if_it_changes_and_more_and_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    pauses: list[float] = []
    monkeypatch.setattr(waiting, "say", said.append)
    queued = {"status": "queued", "queue": {"name": "q@1", "position": 3}}
    first = {**queued, "queue": {"name": "q@1", "position": 1}}
    states = iter([queued, queued, ConnectionLost("away"), first, first, first, {**first, "status": "running"}])

    def job(_: str) -> Any:
        found = next(states)
        if isinstance(found, Exception):
            raise found
        return found

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return False

    client: Any = SimpleNamespace(job=job, live=lambda: {"state": {"problems": [], "queues": []}})
    has_begun: Any = SimpleNamespace(wait=wait, is_set=lambda: False)
    waiting.tell(client, "job_1", has_begun)
    assert [line.partition("place ")[2] for line in said] == ["3 in q@1", "1 in q@1"]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
