"""Inference servers that sleep while their versions have no place on a host, with a fake vLLM of several processes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.features.hosts import kept_servers
from headrace.features.hosts.kept_servers import KeptServers, ServerAddress, ServerState, to_end
from headrace.models.external_registration import register_external
from headrace.store.child_process import still_alive
from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import read_hosts
from headrace.store.hosts.hosted_versions import HostedVersion, read_hosted_versions
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.models import ModelVersion, read_file, resolve
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.workers.server_process import ServerProcess
from headrace.workers.tasks.generate_external import ServerStart, load_external_model
from tests.models.external.served import bytes_folder, fake_engine_python
from tests.processes import StartProcess, python, wait_for
from tests.workers.conftest import Bench, worker_environment

MIB = 1 << 20
ROOM = 1024 * MIB


def register(db: Database, folder: Path, *names: str) -> list[ModelVersion]:
    specs = {name: EngineSpec(kind=EngineKind.VLLM, served_model=name) for name in names}
    return [register_external(db, name, specs[name], source=folder, tokenizer=None, actor="tests") for name in names]


def starts(folder: Path) -> list[list[int]]:
    """Return the process ids of each start of a server."""
    lines = (folder / "started").read_text().splitlines() if (folder / "started").exists() else []
    return [json.loads(line)["pids"] for line in lines]


def slept(folder: Path) -> list[str]:
    return (folder / "slept").read_text().splitlines() if (folder / "slept").exists() else []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return bytes_folder(tmp_path / "model")


@pytest.fixture
def kept(db: Database, settings: Settings, tmp_path: Path) -> Iterator[KeptServers]:
    here = settings.model_copy(update={"home": tmp_path, "engine_python": fake_engine_python(tmp_path)})
    with closing(KeptServers(here, db, ROOM)) as servers:
        yield servers


def hosted(db: Database) -> dict[str, HostedVersion]:
    return {version.queue: version for version in read_hosted_versions(db)}


def test_a_server_sleeps_without_its_worker_wakes_for_the_next_and_is_started_anew_if_it_dies_asleep(
    db: Database, settings: Settings, files: Path, kept: KeptServers, tmp_path: Path
) -> None:
    (version,) = register(db, files, "one")
    one = hosted(db)["one@1"]
    assert kept.keeps(one)
    of_the_operator = EngineSpec(kind=EngineKind.VLLM, served_model="one", url="http://gpu-host:8000")
    assert not kept.keeps(replace(one, engine=of_the_operator)), "its server is not the host's to start"

    def worker_starts() -> str:
        """Do what a worker does at its start: wake the server, and ask it what it runs. Return the server's address."""
        address = kept.address_for(one)
        wait_for(lambda: kept.failure("one@1") is None and kept.used("one@1"), "the server runs")
        here = settings.model_copy(update={"engine_api_key": address.api_key})
        load_external_model(version, here, partial(read_file, db), ServerStart(url=address.url)).close()
        return address.url

    url = worker_starts()
    wait_for(lambda: kept.rests("one@1", may_sleep=True), "it sleeps")
    assert (kept.asleep, slept(tmp_path)) == (("one@1",), ["one: /sleep with 0 requests"])
    assert worker_starts() == url
    assert (kept.asleep, slept(tmp_path)[1:]) == ((), ["one: /wake_up with 0 requests"])
    wait_for(lambda: kept.rests("one@1", may_sleep=True), "it sleeps again")
    ((main, beside),) = starts(tmp_path)
    os.kill(main, signal.SIGKILL)
    wait_for(lambda: not still_alive([main, beside]), "its guard ends the rest")
    wait_for(lambda: kept.tend(["one@1"]) or not kept.asleep, "its death is noticed")
    assert worker_starts() != url
    wait_for(lambda: len(starts(tmp_path)) == 2, "it was started anew")
    wait_for(lambda: kept.rests("one@1", may_sleep=False), "it ends")
    assert not still_alive(starts(tmp_path)[1])


class ServerWithoutProcess:
    """Notes what it is told."""

    pid = None

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.told.append(name)


def test_a_server_is_not_restarted_from_before_it_sleeps_until_its_next_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ServerWithoutProcess()
    monkeypatch.setattr(kept_servers, "fall_asleep", lambda *_: process.told.append("falls asleep"))
    server = kept_servers.KeptServer(lambda _port, _key: cast(ServerProcess, process))
    wait_for(lambda: process.told == ["start"], "it runs")
    server.sleep()
    wait_for(lambda: server.is_settled, "it sleeps")
    assert process.told == ["start", "rest", "falls asleep"]
    server.use()
    assert process.told[3:] == ["go_on"]
    server.end()
    server.join()
    assert process.told[4:] == ["ask_to_stop", "stop"]
    assert server.is_settled


def test_a_platform_without_sleep_mode_is_noted_and_its_versions_start_and_stop(
    db: Database, settings: Settings, files: Path, tmp_path: Path
) -> None:
    register(db, files, "one")
    one = hosted(db)["one@1"]
    engine = fake_engine_python(tmp_path, more="FAKE_VLLM_CANNOT_SLEEP=1")
    here = settings.model_copy(update={"home": tmp_path, "engine_python": engine})
    with closing(KeptServers(here, db, ROOM)) as servers:
        servers.address_for(one)
        failure = wait_for(lambda: servers.failure("one@1"))
        assert "not supported on current platform" in failure
        wait_for(lambda: servers.rests("one@1", may_sleep=False), "it is forgotten")
        assert not servers.keeps(one)
    with closing(KeptServers(here, db, 0)) as servers:
        assert not servers.keeps(one), "without memory for it no server is kept"


def test_the_longest_asleep_ends_first_and_what_never_fits_does_not_sleep() -> None:
    asleep = {"a@1": (30.0, 4), "b@1": (10.0, 4), "c@1": (20.0, 4)}
    assert to_end(asleep, 4, 16) == []
    assert to_end(asleep, 5, 16) == ["b@1"]
    assert to_end(asleep, 12, 16) == ["b@1", "c@1"]
    assert to_end(asleep, 17, 16) is None


class StillServer:
    """A server that sleeps and ends at once."""

    def __init__(self, told: list[tuple[str, int]], pid: int) -> None:
        self.told, self.pid = told, pid
        self.state = ServerState.UP
        self.failure: str | None = None
        self.used_bytes, self.asleep_since = 4, float(pid)
        self.address = ServerAddress(f"http://{pid}", "key")

    @property
    def is_settled(self) -> bool:
        return self.state in (ServerState.ASLEEP, ServerState.ENDED)

    def use(self) -> None:
        self.state = ServerState.UP

    def sleep(self) -> None:
        self.state = ServerState.ASLEEP

    def end(self) -> None:
        self.told.append(("end", self.pid))
        self.state = ServerState.ENDED

    def join(self) -> None:
        self.told.append(("join", self.pid))


def test_servers_end_for_one_that_falls_asleep_for_versions_that_are_gone_and_with_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, int]] = []
    made: list[StillServer] = []
    monkeypatch.setattr(
        kept_servers, "KeptServer", lambda _make: made.append(StillServer(told, len(made) + 1)) or made[-1]
    )
    monkeypatch.setattr(kept_servers, "resolve", lambda _db, _queue, **_: None)
    monkeypatch.setattr(kept_servers, "used_memory", lambda _pid: 4)
    nothing: Any = None
    servers = KeptServers(Settings(), nothing, 13)
    engine = EngineSpec(kind=EngineKind.VLLM, served_model="a")
    versions: dict[str, Any] = {
        queue: SimpleNamespace(queue=queue, engine=engine) for queue in ("a@1", "b@1", "c@1", "d@1")
    }
    first = [servers.address_for(versions[queue]).url for queue in ("a@1", "b@1", "c@1")]
    assert [servers.rests(queue, may_sleep=True) for queue in ("b@1", "a@1")] == [True, True]
    assert (servers.asleep, told) == (("a@1", "b@1"), [])
    assert servers.rests("c@1", may_sleep=True, weights=2), "6 bytes more, and 5 are free"
    assert (servers.asleep, told) == (("b@1", "c@1"), [("end", 1)]), "the longest asleep ends"
    assert servers.address_for(versions["b@1"]).url == first[1]
    assert servers.asleep == ("c@1",), "the one that is used does not sleep"
    servers.tend(["b@1"])
    assert told == [("end", 1), ("end", 3)], "its version is gone"
    made[1].failure = "no CUDA"
    assert (servers.failure("b@1"), servers.failure("a@1")) == ("no CUDA", None)
    made[1].state = ServerState.ENDING
    assert servers.failure("b@1") is None, "its end was asked for"
    servers.address_for(versions["d@1"])
    servers.keep_none()
    assert not servers.keeps(versions["d@1"])
    servers.close()
    assert told[2:] == [("end", 2), ("end", 4), ("join", 2), ("join", 4)]


@pytest.mark.timeout(600)
@pytest.mark.full
def test_two_versions_on_vllm_share_a_place_and_the_one_without_it_sleeps(
    db: Database, settings: Settings, files: Path, start_process: StartProcess, tmp_path: Path
) -> None:
    register(db, files, "one", "two")
    engine = fake_engine_python(tmp_path)
    changes = {"host_residence_s": 0, "host_swap_share": 1, "drain_s": 1, "home": tmp_path, "engine_python": engine}
    changes["lease_s"] = 60
    argv = python("-m", "headrace.features.hosts", "--memory", "768MiB", "--sleep-memory", "1GiB", "--name", "h1")
    host = start_process(argv, worker_environment(settings, changes))
    # A version that is not verified gets a place for it: so both have had one, and the first one sleeps.
    wait_for(lambda: any(found.asleep for found in read_hosts(db)), lambda: host.log(), 200)
    (name,) = next(found.asleep for found in read_hosts(db) if found.asleep)
    with closing(Bench(db, settings, resolve(db, name))) as bench:
        ended = bench.wait_ended(bench.submit(2), 200)
    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}, [job.error for job in ended]
    assert len(starts(tmp_path)) == 2, "no server was started again"
    assert [line for line in slept(tmp_path) if "with 0 requests" not in line] == []
    assert "/wake_up" in " ".join(slept(tmp_path))
    host.signal(signal.SIGTERM)
    assert host.wait_exit() == 0
    assert not any(still_alive(pids) for pids in starts(tmp_path))
