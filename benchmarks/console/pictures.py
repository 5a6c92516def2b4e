"""Makes the pictures of docs/console.md: a small stack with some load, a worker that is stopped, and the browser."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil

from benchmarks.console import load
from benchmarks.console.chromium import Chromium, Tab, running_chromium
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import load_settings

Say = Callable[[str], object]

_TENANTS = ("acme", "globex", "initech")
_WARM_S = 60.0
_WIDTH, _HEIGHT = 1280, 860


def make(home: Path, chromium: str, folder: Path, say: Say) -> None:
    """Make every picture in ``folder``."""
    settings = load_settings().model_copy(update={"home": home, "api_port": 0, "flower_port": 0})
    changes = {"HEADRACE_FAKE_STEP_MS": "90", "HEADRACE_MAX_SLOTS": "40", "HEADRACE_DRAIN_S": "1"}
    changes |= {"HEADRACE_REQUESTS_PER_MINUTE": "1000000", "HEADRACE_TOKENS_PER_MINUTE": "100000000"}
    with running_stack(settings, [load.MODEL] * 2, say, changes) as stack:
        url = load.database_url(home)
        keys = load.make_tenants(url, _TENANTS)
        load.store_jobs(url, "default", 2_000)
        with load.arrivals(stack.api_url, [stack.api_key, *keys, keys[0], keys[0]], 7.0, (60, 120, 240, 240, 400)):
            time.sleep(_WARM_S)
            retried = _stop_a_worker(stack, say)
            with running_chromium(chromium) as browser:
                _make_all(browser, stack, folder, retried)


def _make_all(browser: Chromium, stack: Stack, folder: Path, retried: str) -> None:
    live = "document.querySelectorAll('a.cell').length > 20 && document.querySelector('.u-wrap') !== null"
    _picture(browser, stack, "live", live, folder / "console-live.png")
    lanes = "document.querySelectorAll('.lane').length > 1"
    _picture(browser, stack, f"job/{retried}", lanes, folder / "console-job.png", dark=True)


def _stop_a_worker(stack: Stack, say: Say) -> str:
    """Stop one worker, which hands back what it holds, and return a job that another attempt has ended."""
    worker = next(child for child in psutil.Process().children(recursive=True) if _is_worker(child))
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    with httpx2.Client(base_url=stack.api_url, headers=headers, timeout=30, trust_env=False) as client:
        running = [job["id"] for job in client.get("/v1/jobs?status=running&limit=100").json()["data"]]
        worker.send_signal(signal.SIGTERM)
        say("a worker is stopped")
        while True:
            stack.supervisor.tend()
            for job_id in running:
                # The epoch of the attempt that ended it, and the number of the event.
                if (client.get(f"/v1/jobs/{job_id}").json()["last_event_id"] or "1-").split("-")[0] != "1":
                    return str(job_id)
            time.sleep(1)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[-4:-2] == ["-m", "headrace.workers"]  # then come --model and its name
    except psutil.Error:
        return False


def _opened(tab: Tab, stack: Stack, page: str, *, dark: bool) -> None:
    tab.dress(width=_WIDTH, height=_HEIGHT, dark=dark, phone=False)
    tab.open(f"{stack.api_url}/healthz")
    tab.wait("location.pathname === '/healthz' && document.readyState === 'complete'")
    tab.run(f"sessionStorage.setItem('headrace.key', {json.dumps(stack.api_key)})")
    tab.open(f"{stack.api_url}/console#/{page}")
    tab.wait("location.pathname === '/console' && document.querySelector('.status.live') !== null")


def _picture(browser: Chromium, stack: Stack, page: str, ready: str, path: Path, *, dark: bool = False) -> None:
    with browser.tab() as tab:
        _opened(tab, stack, page, dark=dark)
        tab.wait(ready)
        time.sleep(2.5)
        tab.picture(path)
