"""Files of jobs in other storages: sealed, in S3, and on a disk that is really full."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from headrace.client import Client
from headrace.features.encryption.master_keys import new_key
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs, open_storage
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.ids import new_id
from headrace.store.settings import Settings
from headrace.store.tenants import api_keys
from tests.own_tasks import TaskStack, installed
from tests.processes import StartProcess

TASK = """
import hashlib
import time

from headrace.tasks import Task
from pydantic import BaseModel

class Order(BaseModel):
    seed: int
    num_bytes: int = 50_000
    pause_s: float = 0

class Made(BaseModel):
    seed: int

TASK = Task(
    name="grow", input=Order, output=Made, runner="grow_task:load", example={"seed": 1}, with_context=True, is_call=True
)

def load(folder):
    def run(batch, contexts):
        for one, context in zip(batch, contexts):
            for number in range(2):
                block = hashlib.sha256(f"{one.seed}/{number}".encode()).digest()
                context.file(f"{number}.bin", block * (one.num_bytes // 32), "application/octet-stream")
                context.progress(number + 1, 2)
                time.sleep(one.pause_s)
        return [{"seed": one.seed} for one in batch]
    return run
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = installed(tmp_path / "grow", "grow = grow_task:TASK")
    (folder / "grow_task.py").write_text(TASK)
    return folder


def new_key_of(db: Database) -> str:
    """A key of a new tenant."""
    tenant = api_keys.create_tenant(db, new_id("t"))
    return api_keys.create_key(db, tenant, "tests", api_keys.SCOPES - {"admin"}, actor="tests")


def in_storage(settings: Settings) -> dict[str, bytes]:
    """Each object of the storage with its bytes."""
    fs, root = open_storage(settings)
    fs.invalidate_cache()
    return {path: fs.cat_file(path) for path in fs.find(root)}


@pytest.fixture
def disk(settings: Settings) -> Iterator[Callable[[int], None]]:
    """A disk of its own for files: the function gives it this many bytes."""
    folder = settings.home / "files"
    folder.mkdir()
    options: list[str] = []

    def sized(num_bytes: int) -> None:
        argv = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={num_bytes}"]), "tmpfs", str(folder)]
        if subprocess.run(argv, capture_output=True, check=False).returncode:
            pytest.skip("a disk of its own needs the right to mount")
        options[:] = ["remount"]

    yield sized
    if options:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_attempts_by_name_and_the_job_succeeds_when_there_is_room(
    settings: Settings,
    package: Path,
    db: Database,
    start_process: StartProcess,
    disk: Callable[[int], None],
) -> None:
    disk(1_000_000)
    stack = TaskStack(settings, start_process, "grow", str(package))
    worker = stack.worker()
    with Client(stack.url, new_key_of(db)) as client:
        small = client.submit(task="grow", model="grow", input={"seed": 1})
        assert client.wait(small["id"])["status"] == "succeeded"
        large = {"seed": 2, "num_bytes": 800_000}
        given_up = client.wait(client.submit(task="grow", model="grow", input=large, max_attempts=2)["id"])
        error = given_up["error"]
        assert (given_up["status"], given_up["attempt"], error["code"]) == ("failed", 2, "storage_unavailable")
        assert "No space left" in error["message"]
        again = client.wait(client.submit(task="grow", model="grow", input={"seed": 3})["id"])
        assert again["status"] == "succeeded", "what the failed attempts wrote is gone"
        disk(20_000_000)
        assert client.wait(client.submit(task="grow", model="grow", input=large)["id"])["status"] == "succeeded"
    assert worker.exit_code is None, worker.log()


@pytest.mark.full
def test_files_of_jobs_are_sealed_in_s3_and_those_of_lost_attempts_collected(
    settings: Settings, package: Path, start_process: StartProcess, s3_url: str
) -> None:
    settings = settings.model_copy(update={"files_url": s3_url, "encryption_keys": f"first:{new_key()}"})
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}  # noqa: TID251
    aws |= {"HEADRACE_FILES_URL": s3_url, "HEADRACE_ENCRYPTION_KEYS": settings.encryption_keys}
    path = os.pathsep.join([str(package), *(one for one in sys.path if "build/clients" in one)])
    with closing(Database(settings.database_url, application_name="tests", seal=open_seal(settings))) as db:
        stack = TaskStack(settings, start_process, "grow", path, **aws)
        dying = stack.worker(environment="test", failpoints="result.kept=kill")
        key = new_key_of(db)
        with Client(stack.url, key) as client:
            lost = client.submit(task="grow", model="grow", input={"seed": 7})["id"]
            dying.wait_exit()
            assert len(in_storage(settings)) == 2
            client.cancel(lost)
            stack.worker()
            ended = client.wait(client.submit(task="grow", model="grow", input={"seed": 8})["id"])
            assert client.wait(lost)["status"] == "cancelled"
        file = ended["output"]["files"][0]
        part = {"Range": "bytes=49000-49999"}
        whole = httpx2.get(stack.url + file["url"], headers={"Authorization": f"Bearer {key}"}).content
        assert hashlib.sha256(whole).hexdigest() == file["sha256"]
        ranged = httpx2.get(stack.url + file["url"], headers={"Authorization": f"Bearer {key}", **part})
        assert (ranged.status_code, ranged.content) == (206, whole[49_000:50_000])
        while files.remove_unreferenced(db, open_blobs(settings, db.seal), older_than_s=0):
            pass
        kept = in_storage(settings)
        assert len(kept) == 2
        assert all(hashlib.sha256(b"8/0").digest() not in content for content in kept.values()), "sealed"
