"""Files that a job made and its progress, in a real browser: a picture is drawn, a sound can be played."""

import io
import json
import wave

import httpx2
import pytest
import redis
from PIL import Image

from benchmarks.console.chromium import Tab
from headrace.features.files import results
from headrace.store.db.database import Database
from headrace.store.redis.live_workers import SnapshotJob, SnapshotPublisher, WorkerSnapshot
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Progress
from tests.features.console.console_tab import check_access, open_page
from tests.processes import wait_for
from tests.producer_api.calling import submit
from tests.producer_api.scripted_worker import ScriptedWorker

pytestmark = pytest.mark.timeout(240)


def picture() -> bytes:
    found = io.BytesIO()
    Image.linear_gradient("L").resize((320, 200)).convert("RGB").save(found, "PNG")
    return found.getvalue()


def sound(seconds: float) -> bytes:
    found = io.BytesIO()
    with wave.open(found, "wb") as writer:
        writer.setparams((1, 2, 8000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * int(8000 * seconds)))
    return found.getvalue()


def snapshot(job_id: str, tenant: str, progress: float) -> WorkerSnapshot:
    about = {"id": job_id, "tenant_id": tenant, "class_rank": 0, "attempt": 1, "age_s": 2, "input_tokens": 1}
    job = SnapshotJob(**about, output_tokens=0, max_tokens=0, progress=progress)
    figures = {"slots": 1, "running": 1, "waiting": 0, "free_blocks": 0, "total_blocks": 0, "lease_s": 10}
    return WorkerSnapshot(
        id="host:1:boot", queue="tiny@1", engine=None, lease_age_s=1, jobs=[job], kept_s=600, **figures
    )


def test_a_picture_is_shown_a_sound_is_played_and_progress_is_told(
    tab: Tab,
    api: httpx2.Client,
    key: str,
    tenant: str,
    worker: ScriptedWorker,
    db: Database,
    settings: Settings,
    redis_client: redis.Redis,
) -> None:
    job = submit(api)
    attempt = worker.claim(job)
    SnapshotPublisher(redis_client).publish(snapshot(job, tenant, 0.4), None)
    open_page(tab, key, "jobs", "tbody tr")
    tab.wait("document.querySelector('tbody').innerText.includes('40 % done')")
    tab.run("location.hash = '#/live'")
    tab.wait("document.querySelector('a.cell')?.ariaLabel.includes('40 % done')")
    tab.run(f"location.hash = '#/job/{job}'")
    tab.wait("document.querySelector('[aria-labelledby=answer]') !== null")

    def is_told() -> bool:
        worker.tell(attempt, Progress(30, 50, "step 30"))  # again: the page may not follow the job yet
        return bool(tab.run("document.querySelector('progress')?.value === 30"))

    wait_for(is_told, "the page shows the progress")
    assert "30 of 50: step 30" in tab.run("document.body.innerText")
    check_access(tab)

    drafts = results.PART.open(settings, db)(db, attempt.claim)
    drafts.add("mill.png", picture(), "image/png", {"width": 320, "height": 200})
    drafts.add("mill.wav", sound(2.5), "audio/wav", {"seconds": 2.5})
    drafts.add("page.html", b"<script>document.title = 'taken'</script>", "text/html", {})
    shown, rows = drafts.keep()
    worker.answer(attempt, {"seed": 7, "files": list(shown)}, rows)

    tab.wait("document.querySelectorAll('.files li a').length === 3")
    tab.wait("document.querySelector('.files img')?.naturalWidth === 320")
    tab.wait("Math.abs(document.querySelector('.files audio')?.duration - 2.5) < 0.01")
    tab.run("(() => { document.querySelector('audio').currentTime = 2 })()")
    tab.wait("document.querySelector('audio').seeking === false && document.querySelector('audio').currentTime === 2")
    assert tab.run("document.querySelector('progress')") is None
    names = tab.run("[...document.querySelectorAll('.files a')].map((one) => one.download)")
    assert names == ["mill.png", "mill.wav", "page.html"]
    saved = tab.run("(async () => (await fetch(document.querySelectorAll('.files a')[2].href)).text())()")
    assert saved.startswith("<script>"), json.dumps(saved)
    check_access(tab)
