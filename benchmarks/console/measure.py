"""The figures: how long a page takes to its first view, and how late the API's event loop runs with consoles open."""

import json
import re
import threading
import time
from contextlib import ExitStack
from typing import Any

import httpx2
import psutil

from benchmarks.console.chromium import Chromium

_BUCKET = re.compile(r'headrace_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)')
_SETTLE_S = 3.0

# Notes when the first cells of workers, and the first row of jobs, are on the page.
_WATCH = """
window.seen = {};
new MutationObserver(() => {
  if (!seen.live && document.querySelector("a.cell")) seen.live = performance.now();
  if (!seen.jobs && document.querySelector("tbody a[href^='#/job/']")) seen.jobs = performance.now();
}).observe(document, {childList: true, subtree: true});
"""


def first_views(browser: Chromium, api_url: str, key: str) -> dict[str, float]:
    """Return the milliseconds from the start of the navigation to the first figures, in a fresh profile each."""
    found = {}
    for page in ("live", "jobs"):
        with browser.tab() as tab:
            tab.send("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
            tab.dress(width=1360, height=900)
            tab.open(f"{api_url}/healthz")
            tab.wait("location.pathname === '/healthz' && document.readyState === 'complete'")
            tab.run(f"sessionStorage.setItem('headrace.key', {json.dumps(key)})")
            tab.open(f"{api_url}/console#/{page}")
            tab.wait(f"location.pathname === '/console' && window.seen && seen.{page}")
            found[page] = round(tab.run(f"seen.{page}"), 1)
    return found


def lag(api_url: str, key: str, consoles: int, seconds: float) -> dict[str, Any]:
    """Return the lag of the event loop and the API's processor time while ``consoles`` consoles are open."""
    with ExitStack() as stack:
        counts = [stack.enter_context(_Console(api_url, key)) for _ in range(consoles)]
        time.sleep(_SETTLE_S)
        before, cpu_before = _lags(api_url), _cpu_s(api_url)
        events_before = sum(console.num_events for console in counts)
        time.sleep(seconds)
        after, cpu_s = _lags(api_url), _cpu_s(api_url) - cpu_before
        events = sum(console.num_events for console in counts) - events_before
    spent = {bound: after[bound] - before[bound] for bound in after}
    return {
        "p50_ms": _quantile(spent, 0.5),
        "p99_ms": _quantile(spent, 0.99),
        "max_ms": _quantile(spent, 1.0),
        "samples": int(spent[float("inf")]),
        "cpu_percent": round(100 * cpu_s / seconds, 1),
        "events_per_s": round(events / seconds, 1),
    }


def _lags(api_url: str) -> dict[float, float]:
    text = httpx2.get(f"{api_url}/metrics", timeout=30).text
    return {float(bound): float(count) for bound, count in _BUCKET.findall(text)}


def _quantile(counts: dict[float, float], share: float) -> float:
    """Return the upper bound of the bucket that has the quantile, in milliseconds."""
    total = counts[float("inf")]
    return next(bound * 1000 for bound in sorted(counts) if counts[bound] >= share * total)


def _cpu_s(api_url: str) -> float:
    port = int(api_url.rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            if any(c.laddr and c.laddr.port == port and c.status == "LISTEN" for c in process.net_connections("inet")):
                times = process.cpu_times()
                return float(times.user + times.system)
        except psutil.Error:
            continue
    raise SystemExit("the API's process was not found")


class _Console:
    """An open stream of live figures, as a console has it, read on a thread."""

    def __init__(self, api_url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}", "Accept": "text/event-stream"}
        self._client = httpx2.Client(base_url=api_url, headers=headers, timeout=30, trust_env=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.num_events = 0

    def __enter__(self) -> "_Console":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)
        self._client.close()

    def _read(self) -> None:
        with self._client.stream("GET", "/v1/live") as response:
            for chunk in response.iter_raw():
                self.num_events += chunk.count(b"event: live")
                if self._stopping.is_set():
                    return
