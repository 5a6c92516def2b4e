"""Flower as a process: nothing without the password, and with it nothing but reading."""

import signal
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from flower.urls import handlers

from cli.local.ports import free_port
from store.errors import SettingsError
from store.settings import Settings
from tests.processes import ROOT, StartProcess, python, wait_for
from tests.workers.conftest import worker_environment
from workers.flower import credentials_of

CREDENTIALS = ("watcher", "a long password")
NODE = "w1@host"
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
    port = free_port("127.0.0.1", 0)
    changes = {"flower_port": port, "flower_basic_auth": ":".join(CREDENTIALS)}
    environment = worker_environment(settings, changes) | OPENING | {"PYTHONPATH": str(ROOT)}
    process = start_process(python("-m", "workers.flower"), environment, cwd=tmp_path)
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
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
            refused = flower.request(method, path, auth=CREDENTIALS, headers={"Content-Type": "application/json"})
            assert refused.status_code == 405, f"{method} {path}"
    for path in ("/", "/tasks", "/broker", "/api/workers", "/api/tasks", "/metrics"):
        assert flower.get(path, auth=CREDENTIALS).status_code == 200, path
    good = b64encode(":".join(CREDENTIALS).encode()).decode()
    for header in (f"Bearer {good}", good, "Basic", "Basic ÿ".encode(), f"Basic {good[:-4]}", "Basic " + "A" * 5000):
        assert flower.get("/api/workers", headers={"Authorization": header}).status_code == 401, header
    page = flower.get("/", auth=CREDENTIALS).text
    assert "Shut down" not in page
    assert "Revoke" not in page


@pytest.mark.parametrize("credentials", ["", "user", "user:", ":password", "user:pässword"])
def test_it_is_not_started_without_a_password(credentials: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_FLOWER_BASIC_AUTH"):
        credentials_of(Settings(flower_basic_auth=credentials))


def test_it_listens_on_this_machine_alone_unless_told() -> None:
    assert Settings().flower_host == "127.0.0.1"
