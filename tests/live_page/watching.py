"""Reads the Live page every second while a chaos run breaks things, and reads the same from the database beside it.

``Watcher`` runs on a thread, because the chaos run needs the main one. ``verdicts`` compares; it is pure.
"""

import json
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.console.chromium import PageError, Tab, running_chromium
from tests.chaos.cluster import Cluster
from tests.chaos.journal import now_s
from tests.chaos.soak import database_of

_EVERY_S = 1.0
# The page shows what was read a second ago, and counts of a queue are a quarter of a second old then.
_SLACK_S = 3.0
_SLACK_JOBS = 5
# A worker is lost after 15 s without a heartbeat, and stays on the page for 45 s more.
_NAMED_S = 40.0

_PAGE = """(() => {
  const text = (what) => document.querySelector(what)?.innerText ?? '';
  const number = (what) => Number((text(what).match(/[\\d,.]+/) ?? ['-1'])[0].replace(/[,]/g, ''));
  return {
    problems: [...document.querySelectorAll('.problems li')].map((one) => ({
      kind: one.querySelector('.badge').textContent, text: one.lastChild.textContent.trim(),
    })),
    notes: [...document.querySelectorAll('main > .note.bad')].map((one) => one.innerText),
    waiting: number('.figure:nth-child(4) .value'),
    running: number('.figure:nth-child(4) .value small'),
    held: number('[aria-labelledby=workers] .title .small'),
    workers: [...document.querySelectorAll('article.worker')].map((one) => one.className + ' ' + one.ariaLabel),
  };
})()"""

_TRUTH = """
SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'running')
FROM jobs WHERE state IN ('queued', 'running') AND queue = 'fake@1'
"""
_LARGEST = """
SELECT tenants.name, count(*) FROM jobs JOIN tenants ON tenants.id = jobs.tenant_id
WHERE state = 'queued' AND queue = 'fake@1' GROUP BY 1 ORDER BY sum(cost_tokens) DESC, 1 LIMIT 1
"""


@dataclass(frozen=True)
class Look:
    """The page and the database at about the same time. ``truth`` is None while Postgres does not answer."""

    at: float
    page: dict[str, Any]
    truth: tuple[int, int] | None
    largest: str | None


class Watcher(threading.Thread):
    """Has the Live page open in a tab. ``looks`` grows; ``pictures`` are taken when a new kind of problem is shown."""

    def __init__(self, cluster: Cluster, chromium: str, folder: Path) -> None:
        super().__init__(daemon=True)
        self.looks: list[Look] = []
        self.error = ""
        self._cluster = cluster
        self._chromium = chromium
        self._folder = folder
        self._over = threading.Event()
        self._seen: set[str] = set()
        self._job: str | None = None

    def run(self) -> None:
        """Look until ``end``."""
        try:
            with running_chromium(self._chromium) as browser, browser.tab() as tab:
                self._open(tab)
                while not self._over.wait(_EVERY_S):
                    self._look(tab)
                self._show_job(tab)
        except PageError as error:
            self.error = str(error)

    def end(self, job_id: str | None) -> None:
        """Open the page of this job, take its picture, and look no more."""
        self._job = job_id
        self._over.set()
        self.join()

    def _open(self, tab: Tab) -> None:
        url, key = self._cluster.api_urls[0], self._cluster.tenants[0].key
        tab.dress(width=1280, height=860)
        tab.open(f"{url}/healthz")
        tab.wait("location.pathname === '/healthz' && document.readyState === 'complete'")
        tab.run(f"sessionStorage.setItem('headrace.key', {json.dumps(key)})")
        tab.open(f"{url}/console#/live")
        tab.wait("document.querySelector('.status.live') !== null")

    def _look(self, tab: Tab) -> None:
        page = tab.run(_PAGE)
        truth, largest = None, None
        with suppress(psycopg.Error), psycopg.connect(**database_of(self._cluster), connect_timeout=2) as connection:  # type: ignore[arg-type] # the values are strings
            connection.execute("SET statement_timeout = 2000")
            truth = connection.execute(_TRUTH).fetchone()
            largest = (connection.execute(_LARGEST).fetchone() or (None,))[0]
        self.looks.append(Look(now_s(), page, truth, largest))
        kinds = {one["kind"] for one in page["problems"]} - self._seen
        for kind in sorted(kinds):
            tab.picture(self._folder / f"chaos-{kind.replace(' ', '-')}.png")
        self._seen |= kinds

    def _show_job(self, tab: Tab) -> None:
        if self._job is not None:
            tab.run(f"location.hash = '#/job/' + {json.dumps(self._job)}")
            tab.wait("document.querySelectorAll('.lane').length > 1")
            time.sleep(1)
            tab.picture(self._folder / "chaos-job.png")


def counts_right(looks: Sequence[Look], column: int, name: str) -> tuple[int, int]:
    """Return how many of the figures ``name`` were those of the database in the seconds before, and how many there are.

    Looks without an answer of the database, and those in which the page says that it has no connection, do not count.
    """
    right = total = 0
    for look in looks:
        near = [one.truth[column] for one in looks if one.truth and look.at - _SLACK_S <= one.at <= look.at + 1]
        if look.truth is None or look.page["notes"] or not near or look.page[name] < 0:
            continue
        total += 1
        right += min(near) - _SLACK_JOBS <= look.page[name] <= max(near) + _SLACK_JOBS
    return right, total


def worker_names(looks: Sequence[Look], events: Iterable[dict[str, Any]]) -> tuple[tuple[int, int], set[str]]:
    """Return how many of the killed workers the page named within 40 s, and how many were killed; and false sentences.

    A sentence about a worker is false if nothing was done to this process. Faults of Postgres and Redis make workers
    late too: those sentences are returned for a person to judge.
    """
    hurt = [one for one in events if one["kind"] in {"signal", "exit"} and one.get("member") == "worker"]
    ends = [one for one in hurt if one["kind"] == "exit" and one["code"] != 0]
    gone = [one for one in ends if looks and looks[-1].at > one["t"] + _NAMED_S]
    named = sum(any(_names(look, one["pid"]) for look in looks if 0 < look.at - one["t"] < _NAMED_S) for one in gone)
    told = {one["text"] for look in looks for one in look.page["problems"] if one["kind"].startswith("worker ")}
    pids = [f"· {one['pid']} " for one in hurt]
    return (named, len(gone)), {text for text in told if not any(pid in text for pid in pids)}


def flood_right(looks: Sequence[Look]) -> tuple[int, int]:
    """Return how often the tenant that the page calls a flood had the most tokens in the database, of all times."""
    told = [(look, one["text"]) for look in looks for one in look.page["problems"] if one["kind"] == "flood"]
    right = 0
    for look, text in told:
        near = {one.largest for one in looks if look.at - _SLACK_S <= one.at <= look.at + 1}
        right += any(name is not None and f"tenant {name} has" in text for name in near)
    return right, len(told)


def _names(look: Look, pid: int) -> bool:
    return any(f"· {pid} " in one["text"] for one in look.page["problems"])
