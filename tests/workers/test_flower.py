"""Flower as a process: nothing without the password, and with it nothing but reading."""

import errno
import signal
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from flower.urls import handlers

from headrace.store.errors import SettingsError
from headrace.store.jobs import jobs
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers import flower as flower_process
from headrace.workers.flower import credentials_of
from tests.processes import ROOT, StartProcess, free_port, python, wait_for
from tests.workers.conftest import Bench, StartWorker, worker_environment

CREDENTIALS = ("watcher", "a long password")
NODE = "w1@host"
TABLE = "/tasks/datatable"
COLUMNS = ("name", "uuid", "state", "args", "kwargs", "result", "exception", "received", "started", "runtime", "worker")
# What would open it, were it started by Celery's command line.
OPENING = {
    "FLOWER_BASIC_AUTH": "any:body",
    "FLOWER_READ_ONLY": "false",
    "FLOWER_UNAUTHENTICATED_API": "true",
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GithubLoginHandler",
}


@pytest.fixture
def flower(settings: Settings, tmp_path: Path, start_process: StartProcess) -> Iterator[httpx2.Client]:
    """A client of a running Flower, in a folder with a configuration that would open it too."""
    (tmp_path / "flowerconfig.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nread_only = False\nbasic_auth = []\n"
    )
    port = free_port()
    changes = {"flower_port": port, "flower_basic_auth": ":".join(CREDENTIALS)}
    environment = worker_environment(settings, changes) | OPENING | {"PYTHONPATH": str(ROOT)}
    del environment["DATABASE_URL"]  # it needs Redis alone
    process = start_process(python("-m", "headrace.workers.flower"), environment, cwd=tmp_path)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        wait_for(lambda: process.exit_code is not None or _answers(client), "Flower answers")
        assert process.exit_code is None, process.log()
        yield client
    process.signal(signal.SIGTERM)
    assert process.wait_exit() == 0, process.log()
    assert not (tmp_path / "ran").exists()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/healthcheck").text == "OK"
    except httpx2.TransportError:
        return False


def _paths() -> list[str]:
    """Every address that Flower knows, with a worker's or a task's name filled in."""
    patterns = [handler[0] if isinstance(handler, tuple) else handler.regex.pattern for handler in handlers]
    names = [pattern.rstrip("$").replace("(.+)", NODE).replace("(.*)", NODE).replace("/?", "") for pattern in patterns]
    return [name for name in names if name.startswith("/")]


def test_it_asks_for_the_password_and_knows_reading_alone(flower: httpx2.Client) -> None:
    assert len(_paths()) > 30
    for path in _paths():
        wrong = [None, ("watcher", "a long passwore"), ("any", "body")]
        if path != "/healthcheck":
            assert [flower.get(path, auth=auth).status_code for auth in wrong] == [401] * 3, path
            assert flower.post(path).status_code == 401, path
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if (method, path) != ("POST", TABLE):
                refused = flower.request(method, path, auth=CREDENTIALS, headers={"Content-Type": "application/json"})
                assert refused.status_code == 405, f"{method} {path}"
    for path in ("/", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics"):
        assert flower.get(path, auth=CREDENTIALS).status_code == 200, path
    assert flower.get("/").headers["WWW-Authenticate"] == 'Basic realm="headrace"', "a browser asks for the password"
    assert flower.delete("/", auth=CREDENTIALS).headers["Allow"] == "GET, HEAD"
    good = b64encode(":".join(CREDENTIALS).encode()).decode()
    for header in (f"Bearer {good}", good, "Basic", "Basic ÿ".encode(), f"Basic {good[:-4]}", "Basic " + "A" * 5000):
        assert flower.get("/api/workers", headers={"Authorization": header}).status_code == 401, header
    page = flower.get("/", auth=CREDENTIALS).text
    assert "Shut down" not in page
    assert "Revoke" not in page


@pytest.mark.full
def test_the_tasks_page_loads_its_table_and_shows_how_jobs_ended(
    flower: httpx2.Client, bench: Bench, start_worker: StartWorker
) -> None:
    # As the script of the page asks; test_it_asks_for_the_password has the same without a password.
    asked = {"draw": 1, "start": 0, "length": 10, "search[value]": "", "order[0][column]": 7, "order[0][dir]": "desc"}
    asked |= {f"columns[{number}][data]": name for number, name in enumerate(COLUMNS)}

    def rows() -> dict[str, dict[str, Any]]:
        table = flower.post(TABLE, data=asked, auth=CREDENTIALS, headers={"Sec-Fetch-Site": "same-origin"})
        return {row["uuid"]: row for row in table.raise_for_status().json()["data"]}

    secret = "the heron waits under the third arch"
    start_worker(lease_s=6, fake_step_ms=5)
    # A worker reports its tasks when Flower asks, every few seconds.
    wait_for(lambda: bench.wait_ended(bench.submit(1)) and len(rows()) > 0, "Flower hears of tasks")
    (running,) = bench.submit(1, sampling={"max_tokens": 8000})
    wait_for(lambda: bench.job(running).state is JobState.RUNNING, "one runs")
    jobs.request_cancel(bench.db, bench.tenant_id, running)
    good, bad, gone = (bench.new_job(prompt=secret, sampling=sampling) for sampling in ({}, {"max_tokens": 9000}, {}))
    jobs.accept(bench.db, [good, bad, gone])
    jobs.request_cancel(bench.db, bench.tenant_id, gone.id)
    bench.publish_hints([good.id, bad.id, gone.id])
    ids = [good.id, bad.id, gone.id, running]
    bench.wait_ended(ids)
    wait_for(lambda: {rows().get(n, {}).get("state") for n in ids} == {"SUCCESS", "FAILURE", "REVOKED"}, "Flower hears")
    found = rows()
    assert (found[good.id]["state"], found[good.id]["exception"]) == ("SUCCESS", None)
    assert (found[bad.id]["state"], found[bad.id]["exception"]) == ("FAILURE", "JobFailed('context_length_exceeded')")
    assert (found[gone.id]["state"], found[running]["state"]) == ("REVOKED", "REVOKED")
    assert secret not in str(found)


@pytest.mark.parametrize("credentials", ["", "user", "user:", ":password", "user:pässword"])
def test_it_is_not_started_without_a_password(credentials: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_FLOWER_BASIC_AUTH"):
        credentials_of(Settings(flower_basic_auth=credentials))


def test_it_listens_on_this_machine_alone_unless_told() -> None:
    assert Settings().flower_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"flower_basic_auth": "a:b"}, "127.0.0.1:5555"),
        ({}, "HEADRACE_FLOWER_BASIC_AUTH"),
        ({"redis_url": ""}, "REDIS_URL"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    given: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Taken:
        def listen_on(self, _host: str, _port: int) -> None:
            raise OSError(errno.EADDRINUSE, "Address already in use")

    settings = Settings(**{"redis_url": "redis://localhost/1", **given})
    monkeypatch.setattr(flower_process, "load_settings", lambda: settings)
    monkeypatch.setattr(flower_process, "configure_logging", lambda _level: None)
    monkeypatch.setattr(flower_process, "GuardedFlower", lambda *_, **_options: Taken())
    assert flower_process.main() == 2
    told = capsys.readouterr().err
    assert (told.startswith("headrace flower: "), reason in told) == (True, True)
    assert told.count("\n") == 1
