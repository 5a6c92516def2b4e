"""Options that exclude each other, and decisions of the local stack: all before a process starts."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.local import __main__ as with_services
from headrace.cli.local import stack
from headrace.cli.local.process import PYTHON
from headrace.cli.local.services import Services
from headrace.cli.local.stack import ServerChoice, running_stack, served_as
from headrace.cli.local.stopping import wait_until_ready
from headrace.store.errors import HeadraceError, InvalidRequest, SettingsError, Unavailable
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.settings import Settings
from tests.cli.client.played import Commands, api, headrace

__all__ = ["api", "headrace"]

OWN_ENGINE = "--memory and --engine out"
FOR_SERVERS = "--engine-python and arguments"


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("up --engine-python /x", SettingsError, FOR_SERVERS),
        ("up --engine native -- --max-model-len 9", SettingsError, FOR_SERVERS),
        (
            "up --engine openai",
            SettingsError,
            "kind openai",
        ),
        (
            "up --memory 4GiB --engine vllm",
            SettingsError,
            "leave --engine out",
        ),
        ("up --autoscale 0..4 --memory 4GiB", SettingsError, OWN_ENGINE),
        ("up --autoscale 0..4 --engine vllm", SettingsError, OWN_ENGINE),
        ("up --autoscale 4..0", SettingsError, "--autoscale: "),
        (
            "host",
            InvalidRequest,
            "give --memory",
        ),
        ("host --memory 1GiB --autoscale", InvalidRequest, "give --memory"),
        ("models measure tiny@2", InvalidRequest, "`headrace models quality`"),
        ("models delete tiny", InvalidRequest, "not 'tiny'"),
        ("models delete tiny@1234567890", InvalidRequest, "'tiny@1234567890'"),
        ("models delete tiny@²", InvalidRequest, "'tiny@²'"),
        ("limits set", InvalidRequest, "--requests-per-minute"),
        ("retention set", InvalidRequest, "--outputs-days"),
        ("policy test nowhere.txt", InvalidRequest, "nowhere.txt"),
        ("new-task 9lives", InvalidRequest, "letter first"),
        (f"new-task {'a' * 41}", InvalidRequest, "up to 40"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    headrace: Commands, line: str, kind: type[HeadraceError], said: str
) -> None:
    with pytest.raises(kind) as refused:
        headrace(line, {})
    assert said in refused.value.message


def test_a_policy_is_tried_on_each_line_as_input_and_as_output(headrace: Commands, tmp_path: Path) -> None:
    rules = [
        {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"},
        {"id": "word", "deny": {"phrases": ["secret"]}, "action": "block", "stage": "output"},
    ]
    (tmp_path / "policy").write_text(json.dumps({"rules": rules}))
    (tmp_path / "texts").write_text("to ann@example.com\n\na secret\n")
    (first, second) = json.loads(headrace("policy test texts -p policy --json", {}))
    hit = {"kind": "email", "action": "redact", "rule": "mail", "start": 3, "end": 18}
    untouched: dict[str, Any] = {"blocked_by": None, "hits": []}
    assert first == {
        "text": "to ann@example.com",
        "input": {"text": "to <EMAIL_1>", "blocked_by": None, "hits": [hit]},
        "output": untouched | {"text": "to ann@example.com"},
    }
    denied = {"kind": "denied", "action": "block", "rule": "word", "start": 2, "end": 8}
    assert second == {
        "text": "a secret",
        "input": untouched | {"text": "a secret"},
        "output": {"text": "a ", "blocked_by": "word", "hits": [denied]},
    }
    (whole,) = json.loads(headrace("policy test policy --json", {}))
    assert whole["input"]["blocked_by"] is None
    for bad, said in (
        ("{", "Invalid JSON"),
        ('{"rules": [{"id": "x"}]}', "rules.0.action"),
    ):
        (tmp_path / "policy").write_text(bad)
        with pytest.raises(InvalidRequest) as refused:
            headrace("policy test texts -p policy", {})
        assert said in refused.value.message


def test_a_worker_is_started_by_the_name_that_was_given() -> None:
    class Version:
        model, version = "tiny", 3

    version: Any = Version()
    assert [served_as(asked, version) for asked in ("tiny", "tiny@2", "./folder")] == ["tiny", "tiny@2", "tiny@3"]
    server = ServerChoice(EngineKind.VLLM, None, ("--max-model-len", "9"))
    assert server.options() == ["--engine", "vllm", "--", "--max-model-len", "9"]


def test_programs_that_do_not_get_ready_are_named() -> None:
    class Program:
        child = None

        def __init__(self, name: str, answers: list[bool]) -> None:
            self.name, self.answers = name, answers

        def is_ready(self) -> bool:
            return self.answers.pop() if self.answers else False

    programs: list[Any] = [Program("api", [True]), Program("worker", []), Program("host", [])]
    with pytest.raises(Unavailable) as refused:
        wait_until_ready(programs, -1)
    assert "worker, host" in refused.value.message
    wait_until_ready([programs[0]] * 0, -1)
    ready: list[Any] = [Program("api", [True])]
    wait_until_ready(ready, -1)


class Played:
    """Stands for the program of a stack."""

    def __init__(self, command: Any, is_ready: Any, stop_s: float) -> None:
        self.name, self.child, self.log = command.name, None, command.log
        self.argv = command.argv[len(PYTHON) :]
        self.env = command.env
        self.ready, self.stop_s = is_ready, stop_s

    def start(self) -> None:
        happened.append(f"start {self.name}")

    def stop(self) -> None:
        happened.append(f"stop {self.name}")


happened: list[str] = []
limits_s: list[float] = []


@pytest.fixture
def played_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that yields a stack of played programs by their names, with the stack itself."""
    (tmp_path / "python").touch()
    happened.clear()
    limits_s.clear()
    settings = Settings(home=tmp_path, drain_s=5, api_port=81, flower_port=82, worker_metrics_port=83, host_port=84)

    @contextmanager
    def play(names: tuple[str, ...], *, has_roles: bool = True, **options: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        spec = type("Spec", (), {"is_external": "server" in options})
        versions: Any = [type("Version", (), {"engine": spec})]

        @contextmanager
        def services(*_: Any) -> Iterator[Services]:
            yield Services("postgresql+psycopg://app@/db?host=s", "unix://v", (), has_roles=has_roles)

        (tmp_path / "pg").mkdir(exist_ok=True)  # where models are registered
        monkeypatch.setattr(stack, "running_services", services)
        monkeypatch.setattr(stack, "_prepare", lambda *_: ("hr_key", versions, names))
        monkeypatch.setattr(stack, "answers", lambda url: url)
        monkeypatch.setattr(stack, "free_port", lambda _host, wanted: wanted or 99)
        monkeypatch.setattr(stack, "Program", Played)
        monkeypatch.setattr(stack, "wait_until_ready", lambda _programs, limit_s, _say: limits_s.append(limit_s))
        # Without this process's own environment.
        monkeypatch.setattr(stack, "child_environment", dict)
        monkeypatch.setattr(stack, "redis_environment", dict)
        monkeypatch.setattr(stack, "Supervisor", lambda programs, _say: programs)
        with running_stack(settings, names, lambda _: None, {"HEADRACE_X": "x"}, **options) as running:
            programs: Any = running.supervisor
            yield running, {program.name: program for program in programs}

    return play


def test_a_stack_gives_each_program_its_role_and_its_port(played_stack: Any, tmp_path: Path) -> None:
    with played_stack(("fake", "org/b@2")) as (running, programs):
        happened.append("runs")
        assert json.loads((tmp_path / "stack.json").read_text()) == {
            "pid": os.getpid(),
            "database_url": "postgresql+psycopg://app@/db?host=s",
            "has_roles": True,
            "redis_url": "unix://v",
            "api_url": "http://127.0.0.1:81",
            "flower_url": "http://127.0.0.1:82",
            "models": ["fake", "org/b@2"],
        }
    assert limits_s == [180.0, 180.0]
    order = ["dispatcher", "worker-fake", "worker-org_b@2", "api", "flower"]
    ends = ["api", "worker-org_b@2", "worker-fake", "dispatcher", "flower"]
    assert happened == [f"start {name}" for name in order] + ["runs"] + [f"stop {name}" for name in ends]
    assert (running.api_url, running.flower_url) == ("http://127.0.0.1:81", "http://127.0.0.1:82")
    assert running.worker_metrics_urls == ("http://127.0.0.1:83/metrics", "http://127.0.0.1:99/metrics")
    assert {name: (one.argv, one.stop_s) for name, one in programs.items()} == {
        "flower": (["headrace.workers.flower"], 10.0),
        "dispatcher": (["headrace.workers.dispatcher"], 10.0),
        "worker-fake": (["headrace.workers", "--model", "fake"], 15.0),
        "worker-org_b@2": (["headrace.workers", "--model", "org/b@2"], 15.0),
        "api": (["headrace.producer_api"], 10.0),
    }
    assert [programs[name].ready for name in ("worker-fake", "api", "flower")] == [
        "http://127.0.0.1:83/metrics",
        "http://127.0.0.1:81/readyz",
        "http://127.0.0.1:82/healthcheck",
    ]
    assert {one.log for one in programs.values()} == {tmp_path / "logs" / f"{name}.log" for name in programs}
    shared = {"REDIS_URL": "unix://v", "PYTHONUNBUFFERED": "1"}
    of_all = {**shared, "HEADRACE_HOME": str(tmp_path), "HEADRACE_X": "x"}
    worker = {**of_all, "DATABASE_URL": "postgresql+psycopg://headrace_worker@/db?host=s"}
    api = {**of_all, "DATABASE_URL": "postgresql+psycopg://headrace_api@/db?host=s"}
    login = f"headrace:{running.flower_password}"
    assert {name: one.env for name, one in programs.items()} == {
        "flower": {**shared, "HEADRACE_FLOWER_PORT": "82", "HEADRACE_FLOWER_BASIC_AUTH": login},
        "dispatcher": worker,
        "worker-fake": worker | {"HEADRACE_WORKER_METRICS_PORT": "83"},
        "worker-org_b@2": worker | {"HEADRACE_WORKER_METRICS_PORT": "99"},
        "api": api | {"HEADRACE_API_PORT": "81"},
    }


def test_a_stack_on_a_given_database_or_an_inference_server_or_a_host(played_stack: Any, tmp_path: Path) -> None:
    server = ServerChoice(EngineKind.VLLM, tmp_path / "python", ("--x",))
    with played_stack(("mine",), has_roles=False, server=server) as (_, programs):
        worker, api = programs["worker"], programs["api"]
    assert limits_s == [600.0, 600.0], "a server may be silent for long"
    assert worker.argv == ["headrace.workers", "--model", "mine", "--engine", "vllm", "--", "--x"]
    assert (worker.ready, worker.stop_s) == ("http://127.0.0.1:83/readyz", 25.0)
    assert worker.env["HEADRACE_ENGINE_PYTHON"] == str(tmp_path / "python")
    assert worker.env["DATABASE_URL"] == api.env["DATABASE_URL"] == "postgresql+psycopg://app@/db?host=s"
    assert api.env["HEADRACE_ROW_SECURITY"] == "off", "its user may be the owner of the tables"
    assert "HEADRACE_ROW_SECURITY" not in worker.env
    for options, words in (({"memory": "4GiB"}, ["--memory", "4GiB"]), ({"autoscale": "0..4"}, ["--autoscale"])):
        with played_stack(("a", "b", "a"), **options) as (running, programs):
            host = programs["host"]
        assert programs.keys() == {"flower", "dispatcher", "host", "api"}
        assert (host.argv, host.ready, host.stop_s) == (
            ["headrace.features.hosts", *words],
            "http://127.0.0.1:84/readyz",
            35.0,
        )
        assert (host.env["HEADRACE_HOST_PORT"], host.env["HEADRACE_HEALTH_HOST"]) == ("84", "127.0.0.1")
        scaled = programs["dispatcher"].env.get("HEADRACE_AUTOSCALE")
        assert scaled == ("a=0..4,b=0..4" if "autoscale" in options else None)
        assert running.worker_metrics_urls == ()
    missing = ServerChoice(EngineKind.VLLM, tmp_path / "none")
    with pytest.raises(Unavailable, match=r"--engine-python .*/none"), played_stack(("a",), server=missing):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_command_has_services_of_its_own_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    happened.clear()
    folders: list[Path] = []

    class Server:
        def __init__(self, folder: Path, log: Path) -> None:
            self.url = f"url of {folder.name}"
            folders.append(folder.parent)

        def start(self) -> None:
            happened.append(f"start {self.url}")
            if fails:
                raise Unavailable("it is away")

        def stop(self) -> None:
            happened.append(f"stop {self.url}")

    def run(argv: list[str], *, env: dict[str, str], check: bool) -> Any:
        assert env == {"DATABASE_URL": "url of pg", "REDIS_URL": "url of kv"}
        assert folders[0].stat().st_mode & 0o777 == 0o711, "the servers' user can enter"
        happened.append(" ".join(argv))
        return type("Done", (), {"returncode": 7})

    for name in ("LocalPostgres", "LocalValkey"):
        monkeypatch.setattr(with_services, name, Server)
    monkeypatch.setattr(with_services, "child_environment", dict)
    monkeypatch.setattr("headrace.cli.local.__main__.subprocess.run", run)
    assert with_services.main(["make", "it"]) == (1 if fails else 7)
    stops = ["stop url of kv", "stop url of pg"]
    assert happened == ["start url of pg", *([] if fails else ["start url of kv", "make it"]), *stops]
    assert capsys.readouterr().err == ("headrace: it is away\n" if fails else "")
    assert not folders[0].exists()
