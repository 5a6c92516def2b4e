"""A model host as a process: its workers, its death, its name; and what hosts read and report."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import text

from headrace.features.hosts.__main__ import main
from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.version_history import VersionHistory
from headrace.features.hosts.waiting_work import read_waiting_work
from headrace.store.child_process import still_alive
from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import (
    HostOutlook,
    HostPlace,
    HostReport,
    PlaceState,
    now,
    outlook_of,
    read_hosts,
    write_report,
)
from headrace.store.hosts.hosted_versions import read_hosted_versions
from headrace.store.jobs.jobs import accept
from headrace.store.registry import models
from headrace.store.registry.models import ModelVersion
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from tests.metric_names import documented
from tests.processes import Process, StartProcess, python, wait_for
from tests.workers.conftest import Bench, worker_environment

GIB = 1 << 30
# Three workers start one after the other, which takes some seconds each, and far longer on a busy machine.
LONG_S = 200.0
# One worker of the fake model is counted with 512 MiB.
ONE_PLACE = "768MiB"


def register(db: Database, model: str, base: ModelVersion | None = None) -> ModelVersion:
    return models.register_version(
        db,
        model=model,
        runner="fake",
        source="",
        digest="0" * 64,
        dtype="none",
        context_window=8192,
        actor="tests",
        base=base,
    )


@contextmanager
def benches(db: Database, settings: Settings, *names: str) -> Iterator[list[Bench]]:
    with ExitStack() as stack:
        found = [Bench(db, settings, register(db, name)) for name in names]
        for bench in found:
            stack.callback(bench.close)
        yield found


def report(name: str, *places: HostPlace, outlooks: tuple[HostOutlook, ...] = ()) -> HostReport:
    return HostReport(name=name, started_at=now(), budget_bytes=GIB, places=places, outlooks=outlooks)


def place(queue: str) -> HostPlace:
    return HostPlace(queue=queue, state=PlaceState.STARTING, since=now(), memory_bytes=1)


def start_host(start_process: StartProcess, settings: Settings, *options: str) -> Process:
    changes = {"host_residence_s": 0, "host_swap_share": 1, "drain_s": 1, "lease_s": 60}
    argv = python("-m", "headrace.features.hosts", "--memory", ONE_PLACE, "--name", "h1", *options)
    return start_process(argv, worker_environment(settings, changes))


@pytest.mark.timeout(600)
def test_two_models_share_one_place_and_a_killed_host_leaves_no_worker(
    db: Database, settings: Settings, start_process: StartProcess
) -> None:
    with benches(db, settings, "one", "two") as (one, two):
        host = start_host(start_process, settings)
        one.wait_ended(one.submit(3), LONG_S)
        pids = {place.pid for place in wait_for(lambda: read_hosts(db))[0].places if place.pid}
        host.signal(signal.SIGKILL)
        wait_for(lambda: not still_alive(pids), "its worker ends")
        jobs = {bench: bench.submit(3) for bench in (one, two)}
        host = start_host(start_process, settings)
        reports: list[HostReport] = []

        def all_ended() -> bool:
            reports.extend(read_hosts(db))
            return all(bench.states(ids)[JobState.SUCCEEDED] == 3 for bench, ids in jobs.items())

        wait_for(all_ended, lambda: host.log(), LONG_S)
        assert all(found.needed_bytes <= found.budget_bytes for found in reports)
        wait_for(lambda: any(found.num_swaps for found in read_hosts(db)), "the swap is reported")
        assert {job.attempt for bench, ids in jobs.items() for job in bench.wait_ended(ids)} == {1}
        host.signal(signal.SIGTERM)
        assert host.wait_exit() == 0
        assert read_hosts(db) == []


def test_a_version_that_cannot_start_is_paused_for_longer_each_time() -> None:
    history = VersionHistory()
    assert history.wait_s("a@1", 100, now=1000) == 100
    assert [history.failed("a@1", now=at) for at in (1000, 1005, 1015)] == [5, 10, 20]
    assert str(history.obstacle("a@1", 1020)).endswith(" 15 s")
    assert history.obstacle("a@1", 1035) is None
    assert history.wait_s("a@1", 135, now=1035) == 135
    history.left("a@1", 1040)
    history.waits_no_more("a@1", 1040)
    assert history.wait_s("a@1", 145, now=1045) == 5, "the time with a place does not count"


def test_every_documented_metric_is_exported_and_no_other() -> None:
    names = set(re.findall(r"^# TYPE (\S+)", HostMetrics().render().decode(), re.MULTILINE))
    assert names == documented("Model host")


def test_of_two_hosts_one_starts_a_version(db: Database) -> None:
    assert [one.queue for one in write_report(db, report("h1", place("a@1")), [place("b@1")]).places] == ["a@1", "b@1"]
    with db.begin() as connection:  # it does not grow old, however slow this machine is
        connection.execute(text("UPDATE model_hosts SET seen_at = now() + interval '1 hour'"))
    assert [one.queue for one in write_report(db, report("h2"), [place("b@1"), place("c@1")]).places] == ["c@1"]


def test_the_soonest_outlook_counts(db: Database) -> None:
    hosts = [
        report("h1", outlooks=(HostOutlook(queue="a@1", text="too large"),)),
        report("h2", outlooks=(HostOutlook(queue="a@1", in_s=9),)),
        report("h3", outlooks=(HostOutlook(queue="a@1", in_s=4),)),
    ]
    found = outlook_of(hosts, "a@1")
    assert found is not None
    assert found.in_s == 4
    assert outlook_of(hosts, "b@1") is None


def test_the_jobs_of_an_adapter_count_for_its_base(db: Database, settings: Settings) -> None:
    with benches(db, settings, "base") as (bench,):
        adapter = register(db, "tone", bench.version)
        accept(db, [bench.new_job(cost_tokens=100)])
        accept(db, [replace(bench.new_job(cost_tokens=30), model="tone", queue="tone@1", model_version=1)])
        (found,) = read_hosted_versions(db)
        assert (found.queue, found.adapters) == ("base@1", (f"{adapter.model}@1",))
        work = read_waiting_work(db).of(found)
        assert (work.tokens, work.running_tokens) == (130, 0)
        assert work.oldest_age_s > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "much"], "4GiB or 512MiB"),
        (["--memory", "1KiB"], "'1KiB'"),
        (["--memory", "4GiB", "--models", "a@stable"], "or NAME@3"),
        (["--memory", "4GiB", "--name", "a b"], "--name"),
    ],
)
def test_a_wrong_option_is_refused(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert words in capsys.readouterr().err
