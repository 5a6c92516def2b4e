"""Files that a task of its own makes, and its progress: over killed workers, a full storage, quotas and erasure."""

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from headrace.client import Client
from headrace.features.files import files
from headrace.features.files.attempt_states import AttemptStates
from headrace.features.files.blob_storage import open_blobs
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.own_tasks import TaskStack, installed
from tests.processes import StartProcess

TASK = """
from headrace.tasks import Task
from pydantic import BaseModel

class Order(BaseModel):
    text: str
    source: str | None = None
    pause_s: float = 0
    steps: int = 0

class Painted(BaseModel):
    num: int

TASK = Task(
    name="paint", input=Order, output=Painted, runner="paint_task.runner:load", example={"text": "x"},
    with_context=True, is_call=True,
)
"""
RUNNER = """
import time

def load(folder):
    def run(batch, contexts):
        for one, context in zip(batch, contexts):
            context.progress(1, 3, f"sketch of {one.text}")
            time.sleep(one.pause_s)
            first = int(context.resumed or 0)
            for step in range(first, one.steps):
                context.progress(step, one.steps, f"from {first}")
                time.sleep(0.1)
                context.checkpoint(lambda: str(step + 1).encode())
            context.file(f"{one.text}.png", one.text.encode() * 1000, "image/png", width=20, height=10)
            if one.source:
                context.file("page.html", context.read(one.source), "text/html")
            if one.text == "crash":
                raise ZeroDivisionError("after a file")
            context.progress(3, 3)
        return [{"num": len(one.text)} for one in batch]
    return run
"""
MILL = b"mill" * 1000


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = installed(tmp_path / "paint", "paint = paint_task:TASK")
    (folder / "paint_task").mkdir()
    (folder / "paint_task" / "__init__.py").write_text(TASK)
    (folder / "paint_task" / "runner.py").write_text(RUNNER)
    return folder


@pytest.fixture
def stack(settings: Settings, package: Path, start_process: StartProcess) -> TaskStack:
    return TaskStack(settings, start_process, "paint", str(package))


@pytest.fixture
def keys(db: Database) -> list[str]:
    return [
        api_keys.create_key(db, api_keys.create_tenant(db, name), "tests", api_keys.SCOPES - {"admin"}, actor="tests")
        for name in ("acme", "globex")
    ]


@pytest.fixture
def http(stack: TaskStack, keys: list[str]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=stack.url, headers={"Authorization": f"Bearer {keys[0]}"}) as client:
        yield client


def stored(settings: Settings) -> list[Path]:
    return [path for path in (settings.home / "files").rglob("*") if path.is_file()]


def test_a_killed_worker_s_files_are_not_served_and_the_next_attempt_s_are(
    stack: TaskStack, http: httpx2.Client, keys: list[str], db: Database, settings: Settings
) -> None:
    dying = stack.worker(environment="test", failpoints="result.kept=kill")
    with Client(stack.url, keys[0]) as client:
        page = http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a", b"<p>hi</p>")}).json()["id"]
        order = {"text": "mill", "source": page, "pause_s": 1}
        job = client.submit(task="paint", model="paint", input=order)["id"]
        assert dying.wait_exit() == -signal.SIGKILL
        assert http.get(f"/v1/jobs/{job}/files/0").status_code == 404
        assert [one["id"] for one in http.get("/v1/files").json()["data"]] == [page]
        left = len(stored(settings))
        assert left == 2, "what the killed worker wrote, beside the upload; equal contents are one"
        stack.worker()
        told = [event for event in client.stream(job) if event.name in ("job.progress", "job.succeeded")]
        ended = client.wait(job)
    assert told[-1].name == "job.succeeded"
    assert {"done": 1, "total": 3, "message": "sketch of mill"} in [event.data for event in told]
    assert {"done": 3, "total": 3, "message": ""} in [event.data for event in told]
    assert (ended["status"], ended["attempt"], ended["output"]["num"]) == ("succeeded", 2, 4)
    first, second = ended["output"]["files"]
    assert first | {"id": 0} == {
        "id": 0,
        "name": "mill.png",
        "media_type": "image/png",
        "bytes": len(MILL),
        "sha256": hashlib.sha256(MILL).hexdigest(),
        "width": 20,
        "height": 10,
        "url": f"/v1/jobs/{job}/files/0",
    }
    _check_served(http, first, second)
    _check_links(http, first, keys)
    used = http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("m", MILL)}).json()["id"]
    assert http.delete(f"/v1/jobs/{job}").status_code == 200
    for one in (first["url"], f"/v1/files/{first['id']}"):
        assert http.get(one).status_code == 404
    while files.remove_unreferenced(db, open_blobs(settings, db.seal), older_than_s=0):
        pass
    assert http.get(f"/v1/files/{used}/content").content == MILL, "an upload of the same bytes stays"
    http.delete(f"/v1/files/{used}")
    http.delete(f"/v1/files/{page}")
    while files.remove_unreferenced(db, open_blobs(settings, db.seal), older_than_s=0):
        pass
    assert stored(settings) == []


def test_a_lost_attempt_is_continued_from_its_state_and_a_cancelled_one_stops(
    stack: TaskStack, keys: list[str], db: Database, settings: Settings
) -> None:
    dying = stack.worker(environment="test", failpoints="state.saved=kill")
    with Client(stack.url, keys[0]) as client:
        job = client.submit(task="paint", model="paint", input={"text": "mill", "steps": 30})["id"]
        assert dying.wait_exit() == -signal.SIGKILL
        worker = stack.worker()
        told = [event.data["message"] for event in client.stream(job) if event.name == "job.progress"]
        assert client.wait(job)["status"] == "succeeded"
        begun = {int(one.removeprefix("from ")) for one in told if one.startswith("from ")}
        assert max(begun) >= 10, "its second attempt went on where the first was"
        long = client.submit(task="paint", model="paint", input={"text": "oat", "steps": 3000})["id"]
        for event in client.stream(long):
            if event.name == "job.progress":
                client.cancel(long)
                break
        assert client.wait(long)["status"] == "cancelled"
        short = client.submit(task="paint", model="paint", input={"text": "rye"})["id"]
        assert client.wait(short)["status"] == "succeeded"
    assert "runner_failed" not in worker.log()
    AttemptStates(settings, db.seal).remove_ended(db)
    assert not [one for one in stored(settings) if "attempts" in one.parts]


def _check_served(http: httpx2.Client, first: dict, second: dict) -> None:
    whole = http.get(first["url"])
    assert (whole.content, whole.headers["content-type"]) == (MILL, "image/png")
    assert whole.headers["content-disposition"] == "inline; filename*=UTF-8''mill.png"
    tag = whole.headers["etag"]
    for asked, status, content, said in (
        ("bytes=0-3", 206, b"mill", "bytes 0-3/4000"),
        ("bytes=3998-", 206, b"ll", "bytes 3998-3999/4000"),
        ("bytes=-3", 206, b"ill", "bytes 3997-3999/4000"),
        ("bytes=2-9999", 206, MILL[2:], "bytes 2-3999/4000"),
        ("bytes=4000-", 416, b"", "bytes */4000"),
        ("lines=1-2", 200, MILL, None),
        ("bytes=3-1", 200, MILL, None),
    ):
        part = http.get(first["url"], headers={"Range": asked})
        found = part.status_code, part.content, part.headers.get("content-range")
        assert found == (status, content, said), asked
    assert http.get(first["url"], headers={"If-None-Match": f'"x", {tag}'}).status_code == 304
    assert http.get(first["url"], headers={"Range": "bytes=0-3", "If-Range": '"old"'}).status_code == 200
    assert http.get(f"/v1/files/{first['id']}/content", headers={"Range": "bytes=1-2"}).content == b"il"
    page = http.get(second["url"])
    assert (page.content, page.headers["x-content-type-options"]) == (b"<p>hi</p>", "nosniff")
    assert page.headers["content-disposition"].startswith("attachment;"), "no page in the name of this server"


def _check_links(http: httpx2.Client, file: dict, keys: list[str]) -> None:
    other = {"Authorization": f"Bearer {keys[1]}"}
    assert http.get(file["url"], headers=other).status_code == 404
    assert http.get(f"{file['url']}/link", headers=other).status_code == 404
    link = http.get(f"{file['url']}/link", params={"seconds": 60}).json()["url"]
    with httpx2.Client(base_url=http.base_url) as anyone:
        assert anyone.get(link).content == MILL
        assert anyone.get(file["url"]).status_code == 401
        for changed in (link.replace("/0?", "/1?"), link.replace("expires=1", "expires=2"), link[:-1] + "z"):
            assert anyone.get(changed).status_code in (400, 404, 422), changed
        second = http.get(f"{file['url']}/link", params={"seconds": 1}).json()
        while anyone.get(second["url"]).status_code == 200:
            pass


def test_a_storage_that_takes_no_more_fails_jobs_by_name_and_not_the_worker(
    stack: TaskStack, http: httpx2.Client, keys: list[str], db: Database, settings: Settings
) -> None:
    worker = stack.worker(tenant_stored_bytes=10_000)
    with Client(stack.url, keys[0]) as client:

        def ended(name: str, **more: object) -> dict:
            job = client.submit(task="paint", model="paint", input={"text": name, **more}, max_attempts=1)
            return dict(client.wait(job["id"]))

        assert ended("mill")["status"] == "succeeded"
        assert ended("a" * 7)["error"]["code"] == "quota_exceeded"
        assert ended("a/b")["error"]["code"] == "invalid_value"
        assert ended("mill", source="file_none")["error"]["code"] == "not_found"
        assert ended("crash")["error"]["code"] == "runner_failed"
        drafts = settings.home / "files" / "drafts"
        assert not [*drafts.iterdir()], "what failed attempts wrote is gone"
        drafts.rmdir()
        drafts.write_text("a disk that takes no folder")
        full = ended("oat")["error"]
        assert (full["code"], "file storage" in full["message"]) == ("storage_unavailable", True)
        drafts.unlink()
        assert ended("oat")["status"] == "succeeded"
    assert worker.exit_code is None, worker.log()
    with db.autocommit() as connection:
        rows = connection.execute(text("SELECT filename FROM files ORDER BY id")).scalars().all()
    assert rows == ["mill.png", "oat.png"]
