"""``headrace top`` in a pseudo-terminal, against a real API with a worker's snapshot in Redis."""

import subprocess
import sys

import orjson
import pytest
import redis
from rich.cells import cell_len

from headrace.store.db.database import Database
from headrace.store.redis.live_workers import SnapshotJob, SnapshotPublisher, WorkerSnapshot, WorkerTick
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants import api_keys
from tests.cli.terminal import terminal
from tests.processes import free_port
from tests.producer_api.serving import serving


@pytest.fixture
def key(db: Database, tenant: str, redis_client: redis.Redis) -> str:
    """A key that sees all, and a worker that has stopped giving tokens."""
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="t",
    )
    jobs = [held(f"job_{rank}{number}", tenant, rank, number) for rank in range(3) for number in range(2)]
    snapshot = WorkerSnapshot(
        id="celery@mill:7:boot",
        queue="tiny@1",
        engine=None,
        slots=8,
        running=6,
        waiting=0,
        free_blocks=10,
        total_blocks=40,
        lease_s=10,
        lease_age_s=1.5,
        quiet_s=40.0,
        kept_s=600,
        jobs=jobs,
    )
    tick = WorkerTick(
        worker=snapshot.id, queue="tiny@1", tokens={tenant: 50}, first_token_ms={tenant: [120.0]}, running=6, slots=8
    )
    SnapshotPublisher(redis_client).publish(snapshot, tick)
    return api_keys.create_key(db, tenant, "all", api_keys.SCOPES, actor="tests")


def held(job_id: str, tenant_id: str, class_rank: int, attempt: int) -> SnapshotJob:
    return SnapshotJob(
        id=job_id,
        tenant_id=tenant_id,
        class_rank=class_rank,
        attempt=attempt + 1,
        age_s=2,
        input_tokens=5,
        output_tokens=10 * attempt,
        max_tokens=20,
        progress=1.0 if (class_rank, attempt) == (2, 0) else None,
    )


def environment(settings: Settings, url: str, key: str) -> dict[str, str]:
    return child_environment({"HEADRACE_HOME": str(settings.home), "HEADRACE_API_URL": url, "HEADRACE_API_KEY": key})


def test_a_lost_api_is_shown_and_tried_again_until_ctrl_c(settings: Settings, key: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with terminal("top", env=environment(settings, url, key)) as seen:
        seen.wait(f"no answer from {url}")
        with serving(settings, port):
            seen.wait("worker mill · 7 of tiny@1 is stalled: no new token for 40 s. It holds 6 jobs.")
            seen.wait("tiny@1  mill · 7  stalled  6 of 8 slots  KV 75%")
            seen.wait("░▄░▄█▄··")
            since = len(seen.text)
        seen.wait("it is tried again", since)
        assert seen.interrupt() == 0
    assert seen.raw.index("\x1b[?1049h") < seen.raw.index("\x1b[?1049l"), "the terminal is as it was before"
    assert "Traceback" not in seen.text


@pytest.mark.full
def test_without_colours_and_in_a_narrow_terminal_nothing_is_lost(settings: Settings, key: str) -> None:
    with serving(settings) as server:
        env = environment(settings, server.url, key) | {"NO_COLOR": "1"}
        with terminal("top", "--once", env=env, columns=36) as seen:
            assert seen.wait_exit() == 0
    assert "i░i▄s░s▄b█b▄ · ·" in seen.text, "a letter for the class"
    assert "\x1b[3" not in seen.raw, "no colour"
    assert max(map(cell_len, seen.text.splitlines())) <= 36


@pytest.mark.full
def test_json_is_one_object_once_and_a_line_for_each_event(settings: Settings, key: str) -> None:
    with serving(settings) as server:
        env = environment(settings, server.url, key)
        argv = [sys.executable, "-m", "headrace.cli.main", "top", "--json"]
        printed = subprocess.run([*argv, "--once"], env=env, capture_output=True, timeout=60, check=True).stdout
        with terminal("top", "--json", env=env, columns=200) as seen:
            seen.wait('{"event":"live"')
            assert seen.interrupt() == 0
    first, *_ = seen.text.splitlines()
    assert orjson.loads(first)["event"] == "history"
    assert orjson.loads(printed)["state"]["workers"][0]["health"] == "stalled"
