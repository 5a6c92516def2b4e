"""What model hosts read and report: versions with their needs, work that waits, places that one host alone has."""

from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.features.hosts.waiting_work import QueueWork, WaitingWork, read_waiting_work
from headrace.store.db import presence
from headrace.store.db.database import Database
from headrace.store.hosts.host_reports import (
    HostOutlook,
    HostPlace,
    HostReport,
    PlaceState,
    last_report,
    outlook_of,
    read_hosts,
    remove_report,
    write_report,
)
from headrace.store.hosts.hosted_versions import read_hosted_versions
from headrace.store.jobs.claims import claim
from headrace.store.registry.engine_spec import EngineKind, EngineSpec
from headrace.store.registry.verification import Verification
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.registry.versions import retire
from tests.store.making import AcceptOne, Query
from tests.store.registry.test_models import register

AT = datetime(2026, 11, 29, tzinfo=UTC)


def verify(db: Database, version: int, *, is_good: bool = True, **figures: Any) -> None:
    verification = Verification(db, "tiny", version, worker="w", lease_s=60)
    verification.claim()
    report = VerificationReport(worker="w", **figures)
    assert verification.accept(report) if is_good else verification.reject("no", report)


def test_versions_come_with_their_needs_and_their_adapters(db: Database) -> None:
    base = register(db, runner="torch", source="/models/tiny")
    verify(db, 1, memory_bytes=7, load_s=2.5)
    register(db, runner="torch", digest="d2")
    register(db, runner="torch", digest="d3")
    verify(db, 3, is_good=False)
    register(db, runner="torch", digest="d4")
    retire(db, "tiny", 4, "tests")
    spec = EngineSpec(kind=EngineKind.VLLM, url="http://gpu")
    register(db, model="served", runner="vllm", engine=spec, dtype="auto")
    for name in ("b-tone", "a-tone"):
        register(db, model=name, runner="torch", digest="a", base=base)
    served, first, second, retired = read_hosted_versions(db)
    assert (first.model, first.version, first.queue, first.source, first.dtype) == (
        "tiny",
        1,
        "tiny@1",
        "/models/tiny",
        "float32",
    )
    assert (first.memory_bytes, first.load_s, first.start_s, first.is_unverified, first.engine) == (
        7,
        2.5,
        6.5,
        False,
        None,
    )
    assert (first.adapters, first.queues) == (("a-tone@1", "b-tone@1"), ("tiny@1", "a-tone@1", "b-tone@1"))
    assert first.created_at == base.created_at
    assert (second.queue, second.memory_bytes, second.start_s, second.is_unverified) == ("tiny@2", None, None, True)
    assert (retired.queue, retired.is_unverified) == ("tiny@4", False), "it may have jobs, and verifies nothing"
    assert (served.queue, served.engine) == ("served@1", spec)


def test_the_work_of_a_queue_is_what_waits_and_what_runs(db: Database, accept_one: AcceptOne, query: Query) -> None:
    for digest in ("d1", "d2", "d3"):
        register(db, digest=digest)
    assert read_waiting_work(db) == WaitingWork({}, {})
    running = accept_one(cost_tokens=20)
    claim(db, "w", "tiny@1", [running], 60)
    claim(db, "w", "tiny@1", [accept_one(input_tokens=0, cost_tokens=0)], 60)
    accept_one(queue="cache")
    accept_one(cost_tokens=13, service_class="batch")
    accept_one(cost_tokens=13, deadline_s=100.0)
    accept_one(queue="tiny@2", model_version=2, service_class="batch", deadline_s=None)
    accept_one(queue="tiny@3", model_version=3)
    query("INSERT INTO queue_controls (queue, paused_by) VALUES ('tiny@3', 'mia')")
    query("UPDATE jobs SET created_at = created_at - interval '50 s' WHERE queue = 'tiny@2'")
    presence.beat_worker(db, "w", "tiny@1", None)
    query("UPDATE worker_processes SET seen_at = now() + interval '10 minutes'")  # a busy machine may be slow
    found = read_waiting_work(db)
    assert (found.by_queue.keys(), found.workers) == ({"tiny@1", "tiny@2"}, {"tiny@1": 1})
    first, second = found.by_queue["tiny@1"], found.by_queue["tiny@2"]
    assert (first.tokens, first.running_tokens, first.class_rank) == (26, 21, 1), "each job counts"
    assert first.deadline_in_s is not None
    assert 0 < first.deadline_in_s <= 100
    assert (second.tokens, second.running_tokens, second.class_rank, second.deadline_in_s) == (13, 0, 2, None)
    assert second.oldest_age_s >= 50


def test_the_jobs_of_adapters_count_for_their_base(db: Database) -> None:
    base = register(db, runner="torch")
    verify(db, 1)
    register(db, model="tone", runner="torch", digest="a", base=base)
    (hosted,) = read_hosted_versions(db)
    own, tone = QueueWork(5, 1, 2, 3.0, 50.0), QueueWork(7, 2, 1, 9.0, 40.0)
    both = WaitingWork({"tiny@1": own, "tone@1": tone, "other@1": QueueWork(100)})
    assert both.of(hosted) == QueueWork(12, 3, 1, 9.0, 40.0)
    idle = QueueWork(0, 2, 0, 0.0, None)
    assert WaitingWork({"tiny@1": own, "tone@1": idle}).of(hosted) == QueueWork(5, 3, 2, 3.0, 50.0)
    assert WaitingWork().of(hosted) == QueueWork(0, 0, 1, 0.0, None)


def place(queue: str, **changes: Any) -> HostPlace:
    return HostPlace(queue=queue, state=PlaceState.SERVING, since=AT, memory_bytes=10, **changes)


def host(name: str, *places: HostPlace) -> HostReport:
    return HostReport(name=name, started_at=AT, budget_bytes=100, places=places)


def test_of_two_hosts_one_starts_a_version(db: Database, query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.store.hosts.host_reports.GONE_AFTER_S", 600)  # a busy machine may be slow
    first = write_report(db, host("b", place("tiny@1", used_bytes=4)), [place("tiny@2", used_bytes=1)])
    assert [one.queue for one in first.places] == ["tiny@1", "tiny@2"]
    assert (first.needed_bytes, first.used_bytes) == (20, 5)
    second = write_report(db, host("a"), [place("tiny@2"), place("tiny@3")])
    assert [one.queue for one in second.places] == ["tiny@3"], "the other host has it"
    assert write_report(db, host("b"), [place("tiny@2")]).places == (place("tiny@2"),), "its own places are no bar"
    write_report(db, first)
    assert read_hosts(db) == [second, first]
    query("UPDATE model_hosts SET seen_at = now() - interval '20 hours' WHERE name = 'b'")
    assert read_hosts(db) == [second]
    assert last_report(db, "b") == first, "however old"
    third = write_report(db, host("c"), [place("tiny@1")])
    assert third.places == (place("tiny@1"),), "a host that is gone holds no place"
    assert last_report(db, "b") == first, "and is not forgotten yet"
    query("UPDATE model_hosts SET seen_at = now() - interval '3 days' WHERE name = 'b'")
    write_report(db, host("c"))
    assert last_report(db, "b") is None
    remove_report(db, "c")
    assert (last_report(db, "c"), last_report(db, "a")) == (None, second)


def test_the_soonest_outlook_is_the_best_and_a_reason_better_than_none() -> None:
    def outlooks(*outlooks: HostOutlook) -> HostReport:
        return HostReport(name="a", started_at=AT, budget_bytes=1, outlooks=outlooks)

    never, late, soon = (
        HostOutlook(queue="tiny@1", in_s=None, text="it needs more memory"),
        HostOutlook(queue="tiny@1", in_s=9.0),
        HostOutlook(queue="tiny@1", in_s=0.0),
    )
    other = HostOutlook(queue="tiny@2", in_s=1.0)
    assert outlook_of([outlooks(never, other), outlooks(late), outlooks(soon)], "tiny@1") == soon
    assert outlook_of([outlooks(never), outlooks(late)], "tiny@1") == late
    assert outlook_of([outlooks(never, other)], "tiny@1") == never
    assert outlook_of([outlooks(other)], "tiny@1") is None
