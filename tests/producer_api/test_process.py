"""``python -m producer_api`` as users start it: how it begins, how it ends, and the one line when it cannot."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest

from store.db import Database
from store.encryption import Vault, new_key
from store.key_checks import check_keys
from store.settings import Settings
from tests.producer_api.calling import streaming, submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import environment, start_process, wait_for_url

pytestmark = pytest.mark.usefixtures("model")


@contextmanager
def _running(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start_process(environ)
    try:
        yield process, wait_for_url(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _refused(environ: dict[str, str]) -> str:
    """Start it and return what it says on its way out."""
    process = start_process(environ)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    return lines[0]


def test_it_serves_and_ends_when_told(settings: Settings, key: str) -> None:
    with _running(environment(settings)) as (process, url):
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as api:
            assert api.get("/readyz").status_code == 200
            submit(api)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=15)
        assert process.returncode == 0
        assert "api_stopped" in said
        assert "Traceback" not in said


def test_a_stop_cuts_streams_and_ends_polls(settings: Settings, key: str, worker: ScriptedWorker) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    with _running(environment(settings, HEADRACE_DRAIN_S="2")) as (process, url):
        with httpx2.Client(base_url=url, headers=headers, timeout=30) as api:
            job_id = submit(api)
            worker.say(worker.claim(job_id), "half")
            polled: list[str] = []
            is_connected = threading.Event()

            def poll() -> None:
                with httpx2.Client(base_url=url, headers=headers, timeout=30) as other:
                    other.get("/readyz")
                    is_connected.set()
                    polled.append(other.get(f"/v1/jobs/{job_id}", params={"wait": 25}).json()["status"])

            polling = threading.Thread(target=poll)
            polling.start()
            with streaming(api, job_id) as stream:
                stream.until("job.delta")
                assert is_connected.wait(10)
                time.sleep(0.5)  # nobody is told that a poll has begun
                process.send_signal(signal.SIGTERM)
                told_at = time.monotonic()
                with pytest.raises(httpx2.RemoteProtocolError):
                    stream.rest()
            _, said = process.communicate(timeout=15)
        polling.join()
    assert time.monotonic() - told_at < 8
    assert polled == ["running"]
    assert process.returncode == 0
    assert "Traceback" not in said


def test_a_port_in_use_is_said_in_one_line(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _refused(environment(settings, HEADRACE_API_PORT=str(port)))
    assert said == f"headrace api: cannot listen on 127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app@127.0.0.1:1/x"}, "Postgres is not available"),
        ({"REDIS_URL": ""}, "REDIS_URL is not set"),
        ({"HEADRACE_API_PORT": "many"}, "HEADRACE_API_PORT"),
        ({"HEADRACE_COLOUR": "red"}, "unknown setting HEADRACE_COLOUR"),
        ({"HEADRACE_LOG_LEVEL": "LOUD"}, "HEADRACE_LOG_LEVEL"),
        ({"HEADRACE_WEBHOOK_ALLOW_NETWORKS": "here"}, "HEADRACE_WEBHOOK_ALLOW_NETWORKS"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(
    settings: Settings, changes: dict[str, str], words: str
) -> None:
    assert words in _refused(environment(settings) | changes)


def test_another_encryption_key_of_a_known_id_is_refused(settings: Settings, db: Database) -> None:
    check_keys(db, Vault({"k1": bytes(32)}))
    assert "the encryption key 'k1' is another" in _refused(
        environment(settings, HEADRACE_ENCRYPTION_KEYS=f"k1:{new_key()}")
    )


def test_a_user_whom_row_level_security_does_not_bind_is_refused_unless_that_is_meant(settings: Settings) -> None:
    owner = environment(settings) | {"DATABASE_URL": settings.database_url}
    assert "is not bound by row-level security: log in as headrace_api" in _refused(owner)
    process = start_process(owner | {"HEADRACE_ROW_SECURITY": "off"})
    assert process.stderr is not None
    assert '"event": "row_security_off"' in process.stderr.readline()
    wait_for_url(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)


def test_a_redis_that_is_away_is_mentioned_once(settings: Settings) -> None:
    process = start_process(environment(settings) | {"REDIS_URL": "redis://127.0.0.1:1/0"})
    assert process.stderr is not None
    first = process.stderr.readline()
    assert '"event": "redis_unavailable"' in first
    url = wait_for_url(process)
    assert httpx2.get(f"{url}/readyz").status_code == 200
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    assert process.returncode == 0
