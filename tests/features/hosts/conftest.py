"""A host with workers and a store that a test scripts."""

import pytest

from headrace.features.hosts import host_loop, model_host, scaled_host
from tests.features.hosts.scripted_host import AT, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    for name in ("LOOK_S", "_RETRY_S", "_END_LOOK_S"):
        monkeypatch.setattr(host_loop, name, 0.0)
    monkeypatch.setattr(host_loop, "lead", world.lead)
    monkeypatch.setattr(host_loop, "last_report", lambda _db, _name: None)
    monkeypatch.setattr(host_loop, "remove_report", lambda _db, name: world.removed.append(name))
    for module in (model_host, scaled_host):
        monkeypatch.setattr(module, "read_hosted_versions", lambda _db: world.versions)
        monkeypatch.setattr(module, "write_report", world.write_report)
        monkeypatch.setattr(module, "ResidentWorker", world.new_worker)
        monkeypatch.setattr(module, "used_memory", lambda pid: pid)
        monkeypatch.setattr(module, "now", lambda: AT)
    monkeypatch.setattr(model_host, "read_waiting_work", lambda _db: world.work)
    monkeypatch.setattr(model_host, "read_hosts", lambda _db: world.others)
    monkeypatch.setattr(scaled_host, "read_decisions", lambda _db: world.decisions)
    return world
