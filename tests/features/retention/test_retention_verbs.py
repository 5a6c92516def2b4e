"""The operator's word on contents: ``headrace retention``."""

import json
from pathlib import Path

import pytest
import redis
from sqlalchemy import text
from typer.testing import CliRunner

from headrace.cli.tree import app
from headrace.features.retention.retention import DAY_S, Retention, set_retention
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.digests import Digests
from headrace.store.errors import HeadraceError
from headrace.store.jobs.acceptance import Accepted
from headrace.store.jobs.jobs import accept, request_cancel
from headrace.store.registry import prompt_templates
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import stream_key
from headrace.store.tenants.tenant_limits import SetBy
from tests.store.making import MakeJob


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", settings.database_url)
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("HEADRACE_DIGEST_KEYS", "d" * 32)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--tenant", "acme"])
    return done.exception.message if isinstance(done.exception, HeadraceError) else done.output


def test_the_operator_sets_retention_and_sees_it(db: Database, tenant: str) -> None:
    said = run("retention", "set", "--inputs-days", "0.5", "--files-days", "30")
    assert said.startswith(tenant)
    assert "inputs       0.5 days (operator 0.5, default 7)" in said
    assert "outputs      7 days (default 7)" in said
    assert "files        30 days (operator 30)" in said
    said = run("retention", "set", "--files-days", "default")
    assert "inputs       0.5 days" in said, "what is not named stays"
    assert "files        until" in said
    assert "name what to keep" in run("retention", "set")
    assert "'default'" in run("retention", "set", "--outputs-days", "long")
    assert "0 to 36500 days" in run("retention", "set", "--outputs-days", "-1")
    entry = audit.list_entries(db, tenant)[0]
    assert (entry.action, entry.detail["after"]) == ("retention.set", {"inputs_s": 43_200})
    assert entry.actor == "headrace retention"
    days = ("--inputs-days", "1", "--outputs-days", "2", "--deliveries-days", "3", "--files-days", "4")
    held = {"inputs_s": DAY_S, "outputs_s": 2 * DAY_S, "deliveries_s": 3 * DAY_S, "files_s": 4 * DAY_S}
    set_retention(db, tenant, Retention(outputs_s=DAY_S // 2), set_by=SetBy.TENANT, actor="tests")
    assert json.loads(run("retention", "set", *days, "--json")) == {
        "tenant": tenant,
        "holds": held | {"outputs_s": DAY_S // 2},
        "operator": held,
        "own": {"outputs_s": DAY_S // 2},
        "default": {"inputs_s": 7 * DAY_S, "outputs_s": 7 * DAY_S, "deliveries_s": 30 * DAY_S},
    }
    assert "outputs      0.5 days (operator 2, own 0.5, default 7)" in run("retention", "show")


def test_a_purge_is_counted_before_it_is_done(
    db: Database, tenant: str, make_job: MakeJob, redis_client: redis.Redis
) -> None:
    streams = []
    for _ in range(3):
        (accepted,) = accept(db, [make_job(user_id="ann", payload={"input": {"prompt": "xyzzy"}})])
        assert isinstance(accepted, Accepted)
        request_cancel(db, tenant, accepted.job_id)
        streams.append(stream_key(accepted.job_id))
        redis_client.xadd(streams[-1], {"t": "xyzzy"})
    accept(db, [make_job(user_id="ann")])
    prompt_templates.create(db, tenant, name="", template={"instructions": "xyzzy"}, actor="tests")

    def left() -> bool:
        with db.begin() as connection:
            dump = connection.execute(
                text("SELECT jobs::text FROM jobs UNION ALL SELECT prompt_versions::text FROM prompt_versions")
            )
            return "xyzzy" in str(dump.all())

    said = run("retention", "purge", "--user", "ann")
    assert "--yes" in said
    assert "1 jobs, or" in said
    assert "would purge 0 jobs" in run("retention", "purge", "--before", "2020-01-01")
    assert "would purge 3 jobs" in run("retention", "purge", "--before", "2999-01-01T00:00:00")
    nothing = {"files": 0, "uploads": 0, "batches": 0, "prompts": 0, "conversations": 0, "vector_stores": 0}
    told = json.loads(run("retention", "purge", "--user", "ann", "--json"))
    assert told == {"done": False, "jobs": 3, **nothing, "live": 1}
    assert left()
    assert redis_client.exists(*streams) == 3
    assert "purged 3 jobs" in run("retention", "purge", "--user", "ann", "--yes")
    assert not redis_client.exists(*streams)
    assert left()
    assert ", 1 prompts, " in run("retention", "purge", "--yes")
    assert not left()
    entries = [entry for entry in audit.list_entries(db, tenant) if entry.actor == "headrace retention purge"]
    assert [entry.action for entry in entries] == ["contents.purged", "contents.purging"] * 2
    digest = Digests([b"d" * 32]).of("name", b"ann")[0]
    assert (entries[2].detail["jobs"], entries[2].detail["user_digest"]) == (3, digest)
    assert "ann" not in entries[2].detail.values()
