"""Tenant isolation on two levels: every store function names its tenant, and row security in Postgres enforces it for
the API's role, also for a statement without a tenant filter."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from headrace.features.batches import batch_steps, batches
from headrace.features.batches.batch_steps import ParsedLine
from headrace.features.batches.batches import NewBatch
from headrace.features.files import files, uploads
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.policy import policies
from headrace.features.responses import conversations
from headrace.features.responses.new_response import NewResponse
from headrace.features.retrieval import store_files, vector_stores
from headrace.features.rollouts.changes import NewRollout, start
from headrace.features.rollouts.rollouts import Step
from headrace.features.webhooks import endpoints
from headrace.features.webhooks import secrets as webhook_secrets
from headrace.migrations.gaps import find_gaps
from headrace.store.db.database import Database
from headrace.store.db.roles import API, OPERATOR, WORKER, is_bound
from headrace.store.jobs.acceptance import Idempotency
from headrace.store.jobs.jobs import accept, get_many, request_cancel
from headrace.store.registry import prompt_templates
from headrace.store.settings import Settings
from headrace.store.tenants import api_key_admin, tenant_limits
from headrace.store.tenants.api_keys import authenticate, create_key
from tests.roles import role_url
from tests.store.making import MakeJob, Query, ask_approval
from tests.store.registry.test_models import register

STORE = Path(__file__).parents[2] / "store"

# Functions without a tenant, each with its reason: no tenant's rows, or a task of the system.
THE_SYSTEMS_OWN = {
    "nobody's tables": {
        "database.Database.ping",
        "database.check_schema",
        "days.clear_rest",
        "days.drop_one",
        "days.make_ahead",
        "files.keep_content",
        "host_reports.last_report",
        "host_reports.read_hosts",
        "host_reports.remove_report",
        "host_reports.write_report",
        "hosted_versions.read_hosted_versions",
        "master_key_check.check_keys",
        "presence.beat",
        "presence.beat_worker",
        "presence.leave",
        "presence.leave_worker",
        "presence.read_serving",
        "queues.record_rates",
        "models.get_version",
        "models.list_adapters",
        "models.list_models",
        "models.read_file",
        "models.resolve",
        "models.set_sampling",
        "quality_bounds.read_bound",
        "roles.can_log_in",
        "roles.is_bound",
        "rollouts.active_rollout",
        "rollouts.active_rollouts",
        "rollouts.get_rollout",
        "rollouts.list_rollouts",
        "usage.add_up_day",
        "usage.set_price",
        "versions.delete_version",
        "versions.list_versions",
        "leader_election.lead",
        "verification.Verification._conclude",
        "verification.Verification.accept_server",
        "verification.Verification.claim",
        "verification.Verification.give_up",
        "verification.Verification.renew",
    },
    "views that show what fair order counts, or what has ended or is referred to": {
        "backlog.read_backlog",
        "batch_steps.list_live",
        "backlog.within_share",
        "files.expire",
        "files.remove_unreferenced",
        "uploads.expire",
        "vector_stores.remove_ended",
    },
    "the function that finds whose a key is": {"api_keys.authenticate", "api_keys.principal_of_key"},
    "workers, which run everybody's jobs": {
        "waiting_work.read_waiting_work",
        "claims.claim",
        "claims.finish",
        "claims.has_ended",
        "claims.release",
        "claims.renew",
        "claims.owned",
        "claims.still_open",
        "claims.still_running",
        "claims.unclaimed",
        "beginnings.note_begun",
        "dispatch_queries.claim_candidates",
        "dispatch_queries.claimable",
        "dispatch_queries.closing",
    },
    "the dispatcher": {
        "approvals.expire_due",
        "changes.note_evidence",
        "moves.move_queued",
        "rollout_keeper.RolloutKeeper._judge_by_bounds",
        "rollout_keeper.RolloutKeeper._read_evidence",
        "rollouts.rollouts_under_way",
        "shadow.look",
        "work_probe.WorkProbe.look",
        "export.heads",
        "backlog.read_candidates",
        "dispatch_queries.forget_announcements",
        "dispatch_queries.take_stale",
        "dispatch_queries.take_waiting",
        "dispatch_queries.task_of",
        "dispatch_queries.waiting_queues",
        "queue_ages.read_queue_ages",
        "queues.fold",
        "scale_decisions.read_decisions",
        "scale_decisions.read_histories",
        "scale_decisions.read_running",
        "scale_decisions.read_slots",
        "scale_decisions.write_decisions",
        "queues.forget_empty",
        "quotas.fold",
        "quotas.delete_zero_totals",
        "retention.read_all",
        "tenants.list_ids",
        "retention.sweep_marked",
        "entries.purge",
        "sharers.sweep",
        "sweeps.expire_overdue",
        "sweeps.fail_rejected",
        "sweeps.purge",
        "schedules.due",
        "sweeps.start_due",
        "stuck_flows.count_stuck_flows",
        "sweeps.sweep_leases",
        "outbox.oldest_due_s",
        "outbox.postpone",
        "outbox.take_due",
    },
    "the operator's commands": {
        "export.chains",
        "export.missing_guards",
        "export.recorded_heads",
        "job_history.read_ended",
        "master_key_check.forget_key",
        "reencryption.digests",
        "reencryption.reseal_file",
        "reencryption.pages",
        "api_keys.bootstrap",
        "api_keys.create_tenant",
        "api_keys.find_tenant",
        "api_keys.find_tenant_of_key",
        "tenants.list_tenants",
        "tenants.rename",
        "tenants.set_disabled",
    },
}


def nameless(path: Path) -> Iterator[str]:
    """Yield the functions of a module that take a connection but no tenant."""
    module = path.stem

    def visit(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = (*names, node.name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            told = {keyword.arg for keyword in node.keywords}
            if node.func.attr in {"begin", "autocommit", "connection"} and not told & {"tenant_id", "tenant_ids"}:
                yield ".".join((module, *names))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, names)

    yield from visit(ast.parse(path.read_text()), ())


def test_every_function_of_the_store_says_whose_rows_it_is_about() -> None:
    paths = [path for folder in (STORE, STORE.parent / "features") for path in folder.rglob("*.py")]
    found = {name for path in paths for name in nameless(path)}
    # The one makes the transaction, another begins a trace, the third a duty.
    found -= {"database.Database.begin", "batch_lines.LineReader._new_trace", "keeper.DutyGroup._run_one"}
    known = {name for names in THE_SYSTEMS_OWN.values() for name in names}
    assert found - known == set(), "name the tenant (db.begin(tenant_id=…)), or say on the list why there is none"
    assert known - found == set(), "no longer there: strike it from the list"


@pytest.fixture
def api(settings: Settings) -> Iterator[Database]:
    """The database as an API process has it."""
    database = Database(role_url(settings.database_url, API), pool_size=2, application_name="tests")
    yield database
    database.close()


@pytest.fixture
def worker(settings: Settings) -> Iterator[Database]:
    database = Database(role_url(settings.database_url, WORKER), pool_size=1, application_name="tests")
    yield database
    database.close()


@pytest.fixture
def belongings(api: Database, db: Database, tenant: str, make_job: MakeJob) -> list[str]:
    """Something of a tenant's in every table that the API writes, by the API's role; return the tables."""
    key = api_key_admin.create(
        db, tenant, api_key_admin.NewKey("k", frozenset({"admin"})), actor="tests", grantor=None
    ).key
    tenant_limits.set_limits(
        api, tenant, key.id, tenant_limits.Limits(), set_by=tenant_limits.SetBy.TENANT, actor="tests"
    )
    policies.put(api, tenant, "", {"input": []}, "tests")
    prompt = prompt_templates.create(api, tenant, name="p", template={}, actor="tests")
    prompt_templates.set_alias(api, tenant, prompt.id, "default", 1, actor="tests")
    conversations.create(api, tenant, metadata={}, items=[{"id": "msg_1"}])
    uploads.create(api, tenant, num_bytes=1, filename="f", purpose=files.Purpose.BATCH, most_bytes=1)
    webhook_secrets.rotate_webhook_secret(api, tenant, overlap_s=60, actor="tests")
    endpoints.create_endpoint(api, tenant, url="https://hooks.example.com/", actor="tests")
    response = NewResponse(previous_id=None, is_stored=True, is_background=True, input=[], request={})
    job = make_job(idempotency=Idempotency("r", "k", "f"), response=response)
    accept(api, [job])
    request_cancel(api, tenant, job.id)
    batch = _batch(api, db, tenant, key.id)
    line = make_job()
    batch_steps.add_lines(api, batch, [ParsedLine(1, "one", line)], next_line=2, next_offset=9)
    _vector_store(api, tenant)
    tools.create(api, tenant, "weather", HttpTool(url="https://tools.example.com/"), actor="tests")
    ask_approval(api, tenant, job.id)
    return [
        "tenants", "api_keys", "limit_overrides", "policies", "prompts", "prompt_versions", "prompt_aliases",
        "webhook_endpoints", "webhook_secrets", "webhook_deliveries", "jobs", "job_events", "job_terminal",
        "idempotency_keys", "responses", "files", "uploads", "conversations", "conversation_items", "batches",
        "batch_lines", "open_changes", "audit_log", "vector_stores", "vector_store_files", "vector_store_batches",
        "tools", "tool_approvals",
    ]  # fmt: skip


def _vector_store(api: Database, tenant: str) -> str:
    store = vector_stores.create(api, tenant, vector_stores.StoreModel("tiny", 1, 8))
    store_files.attach(api, tenant, store.id, [store_files.NewStoreFile("file_a", {}, 100, 0)], as_batch=True)
    return store.id


def _batch(api: Database, db: Database, tenant: str, key_id: str, file_id: str = "file_a") -> batches.Batch:
    digest = "d" * 64
    with db.begin() as connection:
        connection.execute(
            text("INSERT INTO blobs (digest, num_bytes) VALUES (:digest, 9) ON CONFLICT DO NOTHING"), {"digest": digest}
        )
    with api.begin(tenant_id=tenant) as connection:
        connection.execute(
            text(
                "INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose) "
                "VALUES (:file, :tenant, :digest, 9, 'f', 'batch')"
            ),
            {"tenant": tenant, "digest": digest, "file": file_id},
        )
    new = NewBatch("/v1/chat/completions", "24h", 86_400.0, None, None, "f", None, key_id, None)
    batch = batches.create(api, tenant, new, files.get(api, tenant, file_id))
    batch_steps.start(api, tenant, batch.id, num_total=1, model="tiny", model_versions={"tiny": "tiny@1"})
    return batches.get(api, tenant, batch.id)


def test_without_a_name_or_with_another_the_apis_role_sees_and_changes_nothing(
    api: Database, query: Query, belongings: list[str], other_tenant: str
) -> None:
    """Like a statement without its WHERE, or an injected one."""
    for table in belongings:
        rows = {repr(row) for row in query(f"SELECT * FROM {table}")}
        own = {repr(row) for row in query(f"SELECT * FROM {table}") if other_tenant in repr(row)}
        assert rows - own, f"{table}: nothing to find"
        for name in (None, other_tenant):
            with api.begin(tenant_id=name) as connection:
                seen = [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]
            assert {repr(row) for row in seen} == (set() if name is None else own), table
            column = query(
                "SELECT attname FROM pg_attribute WHERE attrelid = CAST(:t AS regclass) AND attnum = 1", t=table
            )
            for statement in (
                f"UPDATE {table} SET {column[0]['attname']} = {column[0]['attname']}",
                f"DELETE FROM {table}",
            ):
                _refused_or_harmless(api, name, statement)
        assert {repr(row) for row in query(f"SELECT * FROM {table}")} == rows, f"{table} was changed"


def test_a_rollout_of_one_tenants_key_is_an_event_for_another_tenants_operator(
    api: Database, db: Database, query: Query, tenant: str, other_tenant: str
) -> None:
    register(db)
    register(db, digest="d2")
    urls = {"https://a.example.com/": ["*"], "https://b.example.com/": ["rollout.started"]}
    for url, events in urls.items():
        endpoints.create_endpoint(api, other_tenant, url=url, events=events, actor="tests", is_operator=True)
    begun = start(api, NewRollout("tiny", 2, [Step(10, hold_s=60)]), "key", tenant_id=tenant)
    rows = query("SELECT tenant_id, url, registry_id, type FROM webhook_deliveries")
    assert [tuple(row.values()) for row in rows] == [
        (other_tenant, "https://b.example.com/", begun.id, "rollout.started")
    ]
    with api.begin(tenant_id=tenant) as connection:
        assert connection.execute(text("SELECT * FROM webhook_deliveries")).all() == []


def _refused_or_harmless(api: Database, name: str | None, statement: str) -> None:
    refusal = ""
    try:
        with api.begin(tenant_id=name) as connection:
            connection.execute(text(statement))
    except ProgrammingError as error:
        refusal = str(error)
    assert "permission denied" in refusal or not refusal


NAMING_THEIRS = (
    "INSERT INTO responses (job_id, tenant_id, is_stored, is_background, input, request) "
    "VALUES (:their_job, :mine, true, true, '[]', '{}')",
    "INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, job_id) "
    "VALUES (:mine, 'r', 'x', 'f', :their_job)",
    "INSERT INTO dead_letters (job_id, tenant_id, queue, code) VALUES (:their_job, :mine, 'q', 'poison')",
    "INSERT INTO webhook_deliveries (id, tenant_id, url, job_id, type) VALUES ('evt_x', :mine, 'u', :their_job, 't')",
    "INSERT INTO webhook_deliveries (id, tenant_id, url, batch_id, type) "
    "VALUES ('evt_x', :mine, 'u', :their_batch, 't')",
    "INSERT INTO webhook_deliveries (id, tenant_id, url, about_endpoint_id, endpoint_id, type) "
    "VALUES ('evt_x', :mine, 'u', 'x', :their_endpoint, 't')",
    "INSERT INTO batch_lines (batch_id, line, custom_id, job_id) SELECT id, 99, 'x', :their_job FROM batches",
    "UPDATE batch_lines SET job_id = :their_job",
    "UPDATE responses SET job_id = :their_job",
    "UPDATE dead_letters SET job_id = :their_job",
)


@pytest.mark.parametrize("statement", NAMING_THEIRS)
def test_nothing_names_what_is_another_tenants_nor_tells_whether_it_is_there(
    api: Database,
    db: Database,
    belongings: list[str],
    tenant: str,
    other_tenant: str,
    make_job: MakeJob,
    statement: str,
) -> None:
    """The row would be its own tenant's, so row-level security lets it pass."""
    assert belongings
    theirs = make_job(tenant_id=other_tenant)
    accept(api, [theirs])
    with db.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO dead_letters (job_id, tenant_id, queue, code) SELECT id, tenant_id, queue, 'poison' "
                "FROM jobs WHERE tenant_id = :mine AND completed_at IS NOT NULL"
            ),
            {"mine": tenant},
        )
    endpoint = endpoints.create_endpoint(api, other_tenant, url="https://theirs.example.com/", actor="tests")
    batch = _batch(api, db, other_tenant, "key_x", file_id="file_b")
    there = {"their_job": theirs.id, "their_batch": batch.id, "their_endpoint": endpoint.id}

    def refusal(values: dict[str, str]) -> str:
        given = {name: value for name, value in values.items() if f":{name}" in statement}
        with pytest.raises(DBAPIError) as refused, api.begin(tenant_id=tenant) as connection:
            connection.execute(text(statement), given)
        said = str(refused.value.orig)
        for value in values.values():
            said = said.replace(value, "…")
        return said

    said = refusal({**there, "mine": tenant})
    assert "foreign key" in said or "row-level security" in said
    assert said == refusal({**dict.fromkeys(there, "none"), "mine": tenant})


@pytest.mark.parametrize("role", [API, WORKER, OPERATOR])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "CREATE TEMPORARY TABLE x (n int)",
        "CREATE TABLE x (n int)",
    ],
)
def test_no_role_makes_objects_in_the_database(settings: Settings, tenant: str, role: str, statement: str) -> None:
    database = Database(role_url(settings.database_url, role), pool_size=1, application_name="tests")
    try:
        with pytest.raises(ProgrammingError, match="permission denied"), database.begin(tenant_id=tenant) as connection:
            connection.execute(text(statement))
    finally:
        database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose) "
        "SELECT 'file_x', :theirs, digest, 1, 'f', 'batch' FROM blobs",
        "UPDATE files SET tenant_id = :theirs",
        "INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events) VALUES ('we_x', :theirs, 'u', 's', '{}')",
        "INSERT INTO tools (id, tenant_id, name, definition) VALUES ('tool_x', :theirs, 'n', '{}')",
        "INSERT INTO tool_approvals (id, tenant_id, job_id, step_id, tool, expires_at) "
        "VALUES ('apr_x', :theirs, :their_job, :their_job, 't', now())",
        "INSERT INTO audit_log (tenant_id, actor, action, resource) VALUES (:theirs, 'a', 'b', 'c')",
        "INSERT INTO audit_log (tenant_id, actor, action, resource) VALUES (NULL, 'a', 'b', 'c')",
        "UPDATE jobs SET tenant_id = :theirs",
        "INSERT INTO job_events (job_id, kind, epoch) VALUES (:their_job, 'queued', 0)",
        "INSERT INTO job_terminal (job_id, state, epoch) VALUES (:their_job, 'failed', 0)",
        "INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, job_id) "
        "VALUES (:theirs, 'r', 'k', 'f', :their_job)",
        "INSERT INTO api_keys (id, tenant_id, name, secret_hash, scopes) VALUES ('key_x', :theirs, 'k', '', '{admin}')",
    ],
)  # fmt: skip
def test_nothing_is_put_into_another_tenants_hands(
    api: Database, db: Database, belongings: list[str], other_tenant: str, make_job: MakeJob, statement: str
) -> None:
    assert belongings
    theirs = make_job(tenant_id=other_tenant)
    accept(api, [theirs])
    mine = make_job().tenant_id
    values = {"theirs": other_tenant, "their_job": theirs.id}
    with pytest.raises(DBAPIError) as refused, api.begin(tenant_id=mine) as connection:
        connection.execute(text(statement), {name: value for name, value in values.items() if f":{name}" in statement})
    assert (
        "row-level security" in str(refused.value)
        or "permission denied" in str(refused.value)
        or ("another tenant" in str(refused.value))
    )
    assert [job.id for job in get_many(db, other_tenant, [theirs.id])] == [theirs.id]


def test_a_wave_speaks_for_those_in_it_alone(api: Database, tenant: str, other_tenant: str, make_job: MakeJob) -> None:
    wave = [make_job(), make_job(tenant_id=other_tenant)]
    assert [getattr(outcome, "job_id", outcome) for outcome in accept(api, wave)] == [job.id for job in wave]
    with api.begin(tenant_ids=[tenant, other_tenant]) as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == len(wave)
    with pytest.raises(ValueError, match="comma"), api.begin(tenant_id=f"{tenant},{other_tenant}"):
        pass


@pytest.mark.parametrize("role", [API, WORKER, OPERATOR])
@pytest.mark.parametrize(
    "statement", ["UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"]
)
def test_no_role_rewrites_the_audit_log(settings: Settings, tenant: str, role: str, statement: str) -> None:
    database = Database(role_url(settings.database_url, role), pool_size=1, application_name="tests")
    try:
        with pytest.raises(ProgrammingError, match="permission denied"), database.begin(tenant_id=tenant) as connection:
            connection.execute(text(statement))
    finally:
        database.close()


def test_what_the_api_knows_of_everybody_says_nothing_of_what_jobs_are_about(
    api: Database, belongings: list[str]
) -> None:
    assert belongings
    with api.begin() as connection:
        columns = set(connection.execute(text("SELECT * FROM queue_lines")).keys())
    assert columns == {
        "id",
        "queue",
        "tenant_id",
        "class_rank",
        "state",
        "is_suspect",
        "announced_at",
        "created_at",
        "cost",
    }
    with pytest.raises(ProgrammingError, match="permission denied"), api.begin() as connection:
        connection.execute(text("UPDATE queue_lines SET state = 'running'"))


def test_a_key_is_found_by_its_whole_id_and_workers_find_none(
    api: Database, worker: Database, db: Database, tenant: str
) -> None:
    key = create_key(db, tenant, "k", ["admin"], actor="tests")
    assert authenticate(api, key).tenant_id == tenant
    with pytest.raises(ProgrammingError, match="permission denied"):
        authenticate(worker, key)
    with pytest.raises(ProgrammingError, match="permission denied"), worker.begin() as connection:
        connection.execute(text("SELECT * FROM api_keys"))


def test_only_the_apis_role_is_bound(settings: Settings, api: Database, worker: Database, db: Database) -> None:
    assert settings.database_url
    assert (is_bound(api), is_bound(worker), is_bound(db)) == (True, False, False)


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        (
            "CREATE TABLE gap (tenant_id text); GRANT SELECT ON gap TO headrace_operator",
            "gap: .*row-level security.*headrace.migrations.isolation",
        ),
        (
            "CREATE TABLE gap (job_id text REFERENCES jobs); GRANT SELECT ON gap TO headrace_operator",
            "gap: .*row-level security.*headrace.migrations.isolation",
        ),
        ("CREATE TABLE gap (id int)", "gap: no role .*headrace.migrations.isolation"),
        ("ALTER TABLE files DISABLE ROW LEVEL SECURITY", "files: .*row-level security"),
        ("ALTER POLICY headrace_tenant ON files USING (true)", "files: .*row-level security"),
        ("DROP POLICY headrace_every_tenant ON batch_lines", "batch_lines: .*row-level security"),
        ("GRANT UPDATE ON audit_log TO headrace_api", "audit_log: .*headrace_api UPDATE"),
        ("GRANT DELETE ON audit_log TO headrace_operator", "audit_log: .*headrace_operator DELETE"),
        ("GRANT TRUNCATE ON audit_log TO headrace_operator", "audit_log: .*headrace_operator TRUNCATE"),
        (
            "GRANT EXECUTE ON FUNCTION lo_create(oid) TO headrace_api",
            ".*headrace_api large objects",
        ),
        ("GRANT CREATE ON SCHEMA public TO headrace_worker", ".*headrace_worker tables"),
    ],
)
def test_a_gap_is_found(db: Database, change: str, gap: str) -> None:
    with db.begin() as connection:
        assert find_gaps(connection) == []
        connection.exec_driver_sql(change)
        (found,) = find_gaps(connection)
        assert re.match(gap, found)
        connection.rollback()
