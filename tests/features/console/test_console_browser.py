"""The console in a real browser, by keyboard alone: sign in, see what waits, find a job, cancel it."""

import httpx2
import pytest
import redis

from benchmarks.console.chromium import Tab
from headrace.store.redis.live_workers import SnapshotJob, SnapshotPublisher, WorkerSnapshot
from tests.features.console.console_tab import check_access, fill, focus, sign_in
from tests.processes import wait_for
from tests.producer_api.calling import submit
from tests.producer_api.scripted_worker import ScriptedWorker


def refuse(tab: Tab) -> None:
    """Try a wrong key: nothing is shown, and it is not kept."""
    fill(tab, "hr_wrong")
    tab.press("Enter")
    tab.wait("document.querySelector('[role=alert]') !== null")
    assert tab.run("document.querySelector('nav') === null && sessionStorage.length === 0")
    assert tab.run("document.activeElement.name") == "key"
    tab.run("document.activeElement.select()")
    # The answer 401 is an error in the browser's log, as it should be.
    tab.problems[:] = [one for one in tab.problems if "401" not in one]


@pytest.mark.timeout(240)
def test_a_job_is_found_and_cancelled_by_keyboard(
    tab: Tab, api: httpx2.Client, key: str, tenant: str, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    done, open_job = submit(api, metadata={"order": "7"}), submit(api, metadata={"order": "8"})
    worker.succeed(worker.claim(done), "The answer <b>is</b> here.")
    job = SnapshotJob(
        id=open_job,
        tenant_id=tenant,
        class_rank=0,
        attempt=1,
        age_s=2,
        input_tokens=5,
        output_tokens=5,
        max_tokens=20,
    )
    about = {"queue": "tiny@1", "engine": None, "slots": 4, "running": 1, "waiting": 0, "lease_s": 10, "kept_s": 600}
    snapshot = WorkerSnapshot(id="host:1:boot", free_blocks=9, total_blocks=10, lease_age_s=1, jobs=[job], **about)
    SnapshotPublisher(redis_client).publish(snapshot, None)
    refuse(tab)
    sign_in(tab, key)
    focus(tab, "a.cell")
    check_access(tab)
    assert "interactive job" in tab.run("document.activeElement.ariaLabel")
    assert tab.run("document.querySelectorAll('.cells .idle').length") == 3
    focus(tab, "nav.side a[href='#/jobs']")
    tab.press("Enter")
    tab.wait("document.querySelectorAll('tbody tr').length === 2")
    assert tab.run("document.activeElement.tagName") == "H1", "a new page begins at its heading"
    focus(tab, f"a[href='#/job/{done}']")
    tab.press("Enter")
    tab.wait("document.querySelector('.timeline .decode-part, .timeline .compute-part') !== null")
    assert "The answer <b>is</b> here." in tab.run("document.body.innerText"), "shown as a text"
    tab.run(f"location.hash = '#/job/{open_job}'")
    tab.wait("[...document.querySelectorAll('button')].some((one) => one.textContent === 'Cancel')")
    focus(tab, "button.danger")
    tab.press("Enter")
    wait_for(lambda: api.get(f"/v1/jobs/{open_job}").json()["status"] == "cancelled")
    tab.wait("document.querySelector('.badge').textContent === 'cancelled'")
