"""The live page with made-up events: its whole text, its colours and widths, and the requests that it sends."""

import pytest

from benchmarks.console.chromium import Tab
from tests.features.console.faked_answers import HISTORY, LIVE, QUEUES, WORKER
from tests.features.console.faked_api import click, lines, open_faked, page_text, sends, sse, toast_says

pytestmark = pytest.mark.timeout(240)

SCALES_ARE_SHOWN = "document.querySelectorAll('.chart > span').length === 12"
LATE = "[...document.querySelectorAll('.worker .late')].map((one) => one.innerText)"
CELLS = (
    "[...document.querySelectorAll('.cells li > *')].map((one) => [one.className.trim(), one.title, "
    "one.tabIndex, one.firstElementChild?.style.transform])"
)
CELLS_SHOWN = [
    ["cell c1  again", "standard job job_…7d8e9f01, 5 of 20 tokens, 2.5 s, attempt 2", 0, "scaleY(0.25)"],
    ["cell c0 prefill", "interactive job job_b, reads 9 tokens, 2.5 s", -1, "scaleY(0)"],
    ["cell idle", "", -1, None],
    ["cell c1  again", "standard job job_…7d8e9f01, 5 of 20 tokens, 2.5 s, attempt 2", 0, "scaleY(0.25)"],
    ["cell idle", "", -1, None],
    ["cell idle", "", -1, None],
]
BADGES = "[...document.querySelectorAll('main .badge')].map((one) => `${one.innerText}: ${one.className}`)"
BADGES_SHOWN = [
    "not taken: badge bad",
    "worker late: badge warn",
    "paused: badge warn",
    "no worker: badge ",
    "no worker: badge bad",
    "loads in about 1 s: badge",
    "no place: badge bad",
    "serving: badge good",
    "loading: badge warn",
    "asleep: badge ",
    "late: badge warn",
    "lost: badge bad",
]
SPLITS = (
    "[...document.querySelectorAll('main .split')].map((one) => [...one.children].map((part) => "
    "`${part.className} ${part.style.width}`))"
)
SPLITS_SHOWN = [
    ["c0 50%"],
    ["c1 100%"],
    ["c2 0%"],
    ["c0 33.3333%", "c1 66.6667%"],
    [],
    [],
    ["c0 33.3333%", "c1 66.6667%"],
    [],
    [],
    [],
]


def test_the_live_page(tab: Tab) -> None:
    answers = {
        "GET live": [sse("history", HISTORY), sse("live", LIVE)],
        "POST queues/m@3/pause": {},
        "POST queues/a@1/resume": {},
    }
    open_faked(tab, "live", answers, f"document.querySelectorAll('.worker').length === 2 && {SCALES_ARE_SHOWN}")
    assert lines(tab) == page_text("live")
    assert lines(tab, "nav.side .status") == ["no redis"]
    assert tab.run(LATE) == [*["lease 8.0 s of 10 s", "heartbeat 6.0 s"] * 2]
    assert tab.run(CELLS) == CELLS_SHOWN
    assert tab.run(BADGES) == BADGES_SHOWN
    assert tab.run(SPLITS) == SPLITS_SHOWN
    click(tab, "Pause")
    assert sends(tab, "POST", "queues/m@3/pause")[2] == "{}"
    toast_says(tab, "m@3 is paused")
    click(tab, "Resume")
    sends(tab, "POST", "queues/a@1/resume")


HIDDEN = (
    "[...document.querySelectorAll('nav.side a, td.actions button')].map((one) => [one, one.getBoundingClientRect()])"
    ".filter(([, box]) => box.left < 0 || box.right > innerWidth || box.width === 0).map(([one]) => one.innerText)"
)


def test_a_phone_shows_every_page_of_the_navigation_and_the_whole_buttons(tab: Tab) -> None:
    answers = {"GET live": [sse("history", HISTORY), sse("live", LIVE)]}
    open_faked(tab, "live", answers, "document.querySelectorAll('.worker').length === 2")
    tab.dress(width=390, height=844, phone=True)
    tab.wait("innerWidth === 390")
    assert tab.run(HIDDEN) == []
    assert tab.run("document.querySelectorAll('td.actions button').length") == len(QUEUES)
    assert tab.run("document.documentElement.scrollWidth") == 390


def test_the_live_page_of_a_tenant(tab: Tab) -> None:
    idle = {"health": "ok", "total_blocks": None, "engine": None, "waiting": None, "lease_age_s": None, "jobs": []}
    own = LIVE | {
        "share": "own",
        "missing": [],
        "queues": QUEUES[:1],
        "hosts": [],
        "problems": [],
        "cache_hit_rate": None,
        "workers": [WORKER | idle],
    }
    open_faked(
        tab,
        "live",
        {"GET live": [sse("live", own)]},
        "document.querySelectorAll('.worker').length === 1",
    )
    assert lines(tab) == page_text("live_of_a_tenant")
