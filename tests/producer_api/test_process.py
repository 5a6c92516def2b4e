"""``python -m headrace.producer_api`` as users start it: how it begins and ends, and the one line when it cannot."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import httpx2
import pytest
import redis

from headrace.store.settings import Settings
from headrace.store.streams.stream_log import stream_key
from tests.processes import Process, StartProcess, wait_for
from tests.producer_api.calling import streaming, submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import environment, start_api, url_of

pytestmark = pytest.mark.usefixtures("model")


Start = Callable[[dict[str, str]], Process]


@pytest.fixture
def start(start_process: StartProcess) -> Start:
    return partial(start_api, start_process)


def _refused(process: Process) -> str:
    """Return the last output of a process that cannot start."""
    assert process.wait_exit() == 1
    lines = process.log().strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _end(process: Process) -> None:
    """Send SIGTERM; the process must end, and well."""
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0
    assert process.events()[-1]["event"] == "api_stopped"
    assert "Traceback" not in process.log()


@pytest.mark.full
def test_it_serves_and_ends_when_told(settings: Settings, key: str, start: Start) -> None:
    process = start(environment(settings))
    with httpx2.Client(base_url=url_of(process), headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
        assert api.get("/readyz").status_code == 200
        submit(api)
    _end(process)


def test_a_stop_cuts_streams_and_ends_polls(
    settings: Settings, key: str, worker: ScriptedWorker, redis_client: redis.Redis, start: Start
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    process = start(environment(settings, HEADRACE_DRAIN_S="2"))
    url = url_of(process)
    with httpx2.Client(base_url=url, headers=headers, timeout=60) as api:
        job_id = submit(api)
        worker.say(worker.claim(job_id), "half")
        polled_id = submit(api)
        worker.claim(polled_id)
        polled: list[str] = []

        def poll() -> None:
            with httpx2.Client(base_url=url, headers=headers, timeout=60) as other:
                polled.append(other.get(f"/v1/jobs/{polled_id}", params={"wait": 55}).json()["status"])

        polling = threading.Thread(target=poll)
        polling.start()
        with streaming(api, job_id) as stream:
            stream.until("job.delta")
            wait_for(lambda: redis_client.pubsub_numsub(stream_key(polled_id))[0][1], "the poll follows its job")
            told_at = time.monotonic()
            process.signal(signal.SIGTERM)
            with pytest.raises(httpx2.RemoteProtocolError):
                stream.rest()
        assert process.wait_exit() == 0
    polling.join()
    assert time.monotonic() - told_at < 40, "the poll and the stream were not waited for"
    assert polled == ["running"]
    assert "Traceback" not in process.log()


@pytest.mark.full
def test_a_port_in_use_is_said_in_one_line(settings: Settings, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = _refused(start(environment(settings, HEADRACE_API_PORT=str(port))))
    assert f"127.0.0.1:{port}" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"HEADRACE_COLOUR": "red"}, "HEADRACE_COLOUR"),
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://app@127.0.0.1:1/x"}, "Postgres"),
        ({"REDIS_URL": ""}, "REDIS_URL"),
        ({"HEADRACE_API_PORT": "many"}, "HEADRACE_API_PORT"),
        ({"HEADRACE_LOG_LEVEL": "LOUD"}, "HEADRACE_LOG_LEVEL"),
        ({"HEADRACE_WEBHOOK_ALLOW_NETWORKS": "here"}, "HEADRACE_WEBHOOK_ALLOW_NETWORKS"),
    ],
)
@pytest.mark.full
def test_what_keeps_it_from_starting_is_said_in_one_line(
    settings: Settings, changes: dict[str, str], words: str, start: Start
) -> None:
    assert words in _refused(start(environment(settings) | changes))


@pytest.fixture
def owner(settings: Settings) -> dict[str, str]:
    """The environment of an API whose user row-level security does not bind."""
    return environment(settings) | {"DATABASE_URL": settings.database_url}


def test_a_user_whom_row_level_security_does_not_bind_is_refused(owner: dict[str, str], start: Start) -> None:
    assert "headrace_api" in _refused(start(owner))


@pytest.mark.full
def test_a_user_whom_row_level_security_does_not_bind_serves_if_that_is_meant(
    owner: dict[str, str], start: Start
) -> None:
    process = start(owner | {"HEADRACE_ROW_SECURITY": "off"})
    process.wait_event("api_started")
    assert process.events()[0]["event"] == "row_security_off"
    _end(process)


@pytest.mark.full
def test_a_redis_that_is_away_is_mentioned_once(settings: Settings, start: Start) -> None:
    process = start(environment(settings) | {"REDIS_URL": "redis://127.0.0.1:1/0"})
    assert httpx2.get(f"{url_of(process)}/readyz", timeout=60).status_code == 200
    assert process.events()[0]["event"] == "redis_unavailable"
    _end(process)
