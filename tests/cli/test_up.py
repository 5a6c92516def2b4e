"""``headrace up`` and the verbs, as people run them: real processes, the model without weights."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from headrace.cli.local.home import Home
from headrace.cli.up import example
from headrace.store.child_process import descendants, still_alive
from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings, child_environment
from tests.folders import reachable_folder
from tests.processes import StartProcess, free_port, processes, wait_for

HEADRACE = [str(Path(sys.executable).with_name("headrace"))]
# Names of our packages and of what they import: as files of a user's folder they must change nothing.
IN_THE_WAY = (
    "cli",
    "headrace",
    "migrations",
    "models",
    "policy",
    "producer_api",
    "prompts",
    "store",
    "workers",
    "redis",
    "typing",
)
# On a machine that does three such things at once, the first start also compiles every module of its programs.
START_S = 180.0

# Environment variables that only some processes get.
SECRET = "sesame"

pytestmark = pytest.mark.timeout(600)

StartUp = Callable[..., "Up"]


class Up:
    """A ``headrace up`` with the fake model in a home of its own."""

    def __init__(self, start: StartProcess, home: Path, *arguments: str, **env: str) -> None:
        self.home = Home(home)
        ports = {f"HEADRACE_{name}_PORT": str(free_port()) for name in ("API", "FLOWER", "WORKER_METRICS")}
        self.env = child_environment({"HEADRACE_HOME": str(home), **ports})
        for name in ("DATABASE_URL", "REDIS_URL"):
            self.env.pop(name, None)
        self.env |= env
        self.folder = home.parent / "a user's folder"
        self.folder.mkdir(exist_ok=True)
        for name in IN_THE_WAY:
            (self.folder / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')\n")
        self.process = start([*HEADRACE, "up", "--model", "fake", *arguments], self.env, self.folder)

    def read_until(self, words: str) -> str:
        """Return all output so far, as soon as it contains ``words``."""
        try:
            return self.process.wait_log(words, START_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """The end of what each of its processes wrote, and which of them run."""
        running = [cmdline(pid).replace(b"\0", b" ").decode() for pid in descendants(self.process.pid)]
        tails = [f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in self.home.path.rglob("*.log")]
        return "\n".join(["running:", *running, *tails])

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        """Send a signal and return all output once it has ended."""
        self.process.signal(number)
        self.process.wait_exit(START_S)
        return self.process.log()

    def wait_exit(self) -> int:
        """Wait until it has ended by itself; return its exit code."""
        return self.process.wait_exit(START_S)

    def verb(self, *arguments: str, expect: int = 0) -> str:
        """Run a verb against this stack and return what it printed to stdout."""
        done = subprocess.run(
            [*HEADRACE, *arguments],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == expect, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout or done.stderr

    def api(self, path: str) -> Any:
        record, key = self.home.record(), self.home.api_key()
        assert record
        headers = {"Authorization": f"Bearer {key}"}
        return httpx2.get(record.api_url + path, headers=headers, trust_env=False, timeout=START_S).json()


@contextmanager
def stacks() -> Iterator[StartUp]:
    """A function that starts stacks on one home; whatever still runs at the end is killed."""
    with reachable_folder() as folder, processes(folder) as start:
        yield partial(Up, start, folder / "home")


@pytest.fixture
def start_up() -> Iterator[StartUp]:
    with stacks() as start:
        yield start


@pytest.fixture(scope="module")
def shared() -> Iterator[Up]:
    """One running stack for the tests that only look."""
    with stacks() as start:
        up = start(HEADRACE_AUDIT_HEAD_KEY=SECRET, AWS_SECRET_ACCESS_KEY=SECRET)
        up.read_until("ready; Ctrl-C stops everything")
        yield up


def await_ends(pids: set[int]) -> None:
    wait_for(lambda: not still_alive(pids), lambda: f"these ended: {still_alive(pids)}")


@pytest.mark.full
def test_it_serves_and_ends_cleanly_and_finds_its_data_again(start_up: StartUp) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        up = start_up(HEADRACE_API_PORT=str(port), HEADRACE_FAKE_STEP_MS="50", HEADRACE_DRAIN_S="0.3")
        said = up.read_until("ready; Ctrl-C stops everything")
    assert f"port {port} is taken" in said
    processes = descendants(up.process.pid)
    assert len(processes) > 5

    answer = up.verb("submit", "Why is the sky blue?", "--max-tokens", "12", "--temperature", "0", "--wait")
    assert len(answer.strip()) > 0
    job_id = up.verb("submit", "Why is the sky blue?", "--max-tokens", "12", "--temperature", "0").strip()
    assert up.verb("watch", job_id).strip() == answer.strip()
    streamed = up.verb("submit", "Why is the sky blue?", "--max-tokens", "12", "--temperature", "0", "--stream")
    assert streamed.strip() == answer.strip()
    assert orjson.loads(up.verb("jobs", "--json"))[0]["status"] == "succeeded"
    assert job_id in up.verb("jobs", "--status", "succeeded")
    assert "default → 1" in up.verb("models")
    assert "cannot be cancelled" in up.verb("cancel", job_id, expect=1)
    assert "no model 'nope'; known: fake" in up.verb("submit", "hi", "--model", "nope", expect=1)

    key = re.search(r"key\s+(hr_\S+)", said)
    assert key
    assert key.group(1) == up.home.api_key()
    assert (up.home.path / "api-key").stat().st_mode & 0o777 == 0o600
    long_id = up.verb("submit", "a long one", "--max-tokens", "1000").strip()
    while up.api(f"/v1/jobs/{long_id}")["status"] != "running":
        assert up.process.exit_code is None
    assert "· stopped; no process left" in up.stop()
    assert up.process.exit_code == 0
    assert still_alive(processes) == set()

    again = start_up(HEADRACE_FAKE_STEP_MS="0")
    assert "schema migrated" not in again.read_until("ready; Ctrl-C stops everything")
    assert again.api(f"/v1/jobs/{job_id}")["output"]["text"] == answer.strip("\n")
    check_handed_back(again, long_id)
    again.stop(signal.SIGTERM)
    assert again.process.exit_code == 0


def check_handed_back(up: Up, job_id: str) -> None:
    """A job that ran when its stack was stopped is not charged for that, and ends in the next one."""
    job = up.api(f"/v1/jobs/{job_id}?wait=30")
    assert (job["status"], job["attempt"]) == ("succeeded", 1)
    kinds = [event["kind"] for event in up.api(f"/v1/jobs/{job_id}/timeline")["events"]]
    assert "released" in kinds
    assert "lease_expired" not in kinds


@pytest.mark.full
def test_who_dies_is_started_again_and_nothing_outlives_a_kill(start_up: StartUp) -> None:
    up = start_up()
    up.read_until("ready; Ctrl-C stops everything")
    worker = next(pid for pid in descendants(up.process.pid) if b"workers\0--model" in cmdline(pid))
    os.kill(worker, signal.SIGKILL)
    assert "worker ended (signal 9)" in up.read_until("worker started again")
    assert up.verb("submit", "anybody there?", "--max-tokens", "4", "--wait")
    processes = descendants(up.process.pid)
    up.process.signal(signal.SIGKILL)
    await_ends(processes)
    # At once again on the same home: it waits for nothing and trusts no stale file.
    again = start_up()
    again.read_until("ready; Ctrl-C stops everything")
    assert again.verb("submit", "still there?", "--max-tokens", "4", "--wait")
    assert "no process left" in again.stop()


@pytest.mark.full
def test_given_services_are_used_and_left_alone(start_up: StartUp, settings: Settings) -> None:
    up = start_up(DATABASE_URL=settings.database_url, REDIS_URL=settings.redis_url)
    said = up.read_until("ready; Ctrl-C stops everything")
    assert "at DATABASE_URL" in said
    assert "at REDIS_URL" in said
    commands = [cmdline(pid) for pid in descendants(up.process.pid)]
    assert not any(b"postgres" in command or b"valkey-server" in command for command in commands)
    assert up.verb("submit", "hello", "--max-tokens", "4", "--wait")
    up.stop()
    assert not (up.home.path / "pg").exists()


@pytest.mark.full
def test_verbs_find_the_running_stack_from_any_folder_and_say_which(shared: Up, tmp_path: Path) -> None:
    record = shared.home.record()
    assert record
    env = {name: value for name, value in shared.env.items() if not name.startswith("HEADRACE_")}
    env["TMPDIR"] = str(tmp_path)
    for words, said in (
        (("jobs", "--json"), f"· the stack in {shared.home.path} at {record.api_url}\n"),
        (("keys", "--json"), f"· the stack in {shared.home.path}\n"),
    ):
        done = subprocess.run(
            [*HEADRACE, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=START_S, check=False
        )
        assert (done.returncode, done.stderr) == (0, said)
        assert isinstance(orjson.loads(done.stdout), list)


@pytest.mark.full
def test_without_a_model_it_is_the_only_one_that_is_served(shared: Up) -> None:
    assert shared.verb("register", "other", "fake", "--json").startswith('{"model": "other", "version": 1,')
    assert shared.verb("submit", "hello", "--max-tokens", "4", "--wait")
    assert shared.verb("show", shared.verb("submit", "hello", "--max-tokens", "4").strip()).count("fake@1")


@pytest.mark.full
def test_each_event_of_a_stream_is_one_line_of_json(shared: Up) -> None:
    said = shared.verb("submit", "hello", "--max-tokens", "4", "--stream", "--json")
    events = [orjson.loads(line) for line in said.splitlines()]
    assert [event["event"] for event in events][-1] == "job.succeeded"
    deltas = "".join(event["data"]["text"] for event in events if event["event"] == "job.delta")
    assert deltas == events[-1]["data"]["output"]["text"] != ""
    shown = shared.verb("show", events[-1]["data"]["id"])
    assert "succeeded" in shown.splitlines()[0]
    assert shown.rstrip().endswith(deltas)


@pytest.mark.full
def test_a_second_stack_on_one_home_is_refused(shared: Up, start_process: StartProcess) -> None:
    second = Up(start_process, shared.home.path)
    assert second.wait_exit() == 1
    said = second.process.log()
    assert re.search(rf"^headrace: another stack \(pid {shared.process.pid}, API at \S+\)", said)


@pytest.mark.full
def test_a_worker_that_cannot_load_its_model_stops_the_start(
    start_up: StartUp, settings: Settings, db: Database, tmp_path: Path
) -> None:
    register_version(
        db,
        model="broken",
        runner="torch",
        source=str(tmp_path),
        digest="0",
        dtype="float32",
        context_window=64,
        files={},
        actor="test",
    )
    up = start_up("--model", "broken", DATABASE_URL=settings.database_url, REDIS_URL=settings.redis_url)
    assert up.wait_exit() == 1
    (told,) = [line for line in up.process.log().splitlines() if line.startswith("headrace: ")]
    assert "worker-broken ended: headrace worker: " in told


def test_ctrl_c_while_it_starts_leaves_nothing(start_up: StartUp) -> None:
    up = start_up()
    up.read_until("Valkey started")
    processes = descendants(up.process.pid)
    assert "no process left" in up.stop()
    assert still_alive(processes) == set()


TRANSCRIBE = ["curl", "-s", "http://here/v1/audio/transcriptions", "-H", "Authorization: Bearer hr_x_y"]


@pytest.mark.parametrize(
    ("runner", "said"),
    [
        ("fake", ["headrace", "submit", "Why is the sky blue?", "--model", "m", "--stream"]),
        ("fake-encoder", ["curl", "-s", "http://here/v1/embeddings", "-H", "Authorization: Bearer hr_x_y"]),
        ("fake-transcriber", [*TRANSCRIBE, "-F", "model=m", "-F", "file=@speech.wav"]),
    ],
)
def test_the_example_is_what_the_model_is_for(db: Database, runner: str, said: list[str]) -> None:
    model = register_version(
        db,
        model="m",
        runner=runner,
        source=runner,
        digest="0" * 64,
        dtype="float32",
        context_window=64,
        files={},
        actor="tests",
    )
    words = shlex.split(example("http://here", "hr_x_y", model.model, model))
    assert words[: len(said)] == said
    if runner == "fake-encoder":
        assert orjson.loads(words[-1])["model"] == "m"


@pytest.mark.full
def test_flower_asks_for_its_password_and_shows_the_engine(shared: Up) -> None:
    record = shared.home.record()
    assert record
    url = record.flower_url + "/api/workers?refresh=1"
    assert httpx2.get(url, trust_env=False, timeout=60).status_code == 401
    good = ("headrace", shared.home.flower_password())

    def told() -> list[dict[str, Any]]:
        """Return the statistics of the workers that answered Flower within its second."""
        workers = httpx2.get(url, auth=good, trust_env=False, timeout=60).json()
        return [worker["stats"] for worker in workers.values() if worker.get("stats")]

    (stats,) = wait_for(told, "the worker answers")
    assert stats["pool"]["model version"] == "fake@1"
    commands = [cmdline(pid) for pid in descendants(shared.process.pid)]
    assert not any(shared.home.flower_password().encode() in command for command in commands)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.full
def test_flower_is_given_redis_and_no_secret_of_another_process(shared: Up) -> None:
    (pid,) = (pid for pid in descendants(shared.process.pid) if b"headrace.workers.flower" in cmdline(pid))
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"REDIS_URL=" in environment
    assert b"DATABASE_URL" not in environment
    assert SECRET.encode() not in environment
