"""``headrace encryption``: after a rotation nothing needs the old key any more, and nothing was lost on the way."""

import pytest
import redis
from typer.testing import CliRunner

from headrace.cli.tree import app
from headrace.features.batches import batches
from headrace.features.encryption.master_keys import new_key
from headrace.features.files import files
from headrace.features.files.blob_storage import open_blobs, read_blocks
from headrace.features.files.files import Purpose
from headrace.features.flows.store.approvals import decide
from headrace.features.flows.tools import tools
from headrace.features.flows.tools.tool_definition import HttpTool
from headrace.features.responses import conversations, stored_responses
from headrace.features.responses.new_response import NewResponse
from headrace.features.webhooks.endpoints import create_endpoint, rotate_secret
from headrace.features.webhooks.outbox import take_due
from headrace.features.webhooks.secrets import rotate_webhook_secret
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.errors import CannotOpen
from headrace.store.ids import new_id
from headrace.store.jobs import jobs
from headrace.store.jobs.acceptance import Accepted
from headrace.store.jobs.claims import Finish, Release, claim, finish, release
from headrace.store.registry import prompt_templates
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint, LogprobRow
from headrace.store.streams.stream_log import Frame, StreamPublisher
from tests.store.making import QUEUE, MakeJob, ask_approval

HANDED_BACK = Checkpoint(("said",), ((1,),), logprobs=((LogprobRow(1, -0.5),),))
OLD, NEW = f"old:{new_key()}", f"new:{new_key()}"


class Operator:
    """Runs the command, and opens the store, with these keys."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self._settings = settings
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("HEADRACE_HOME", str(settings.home))
        monkeypatch.setenv("DATABASE_URL", settings.database_url)
        monkeypatch.setenv("REDIS_URL", settings.redis_url)

    def with_keys(self, *keys: str) -> Settings:
        given = ",".join(keys)
        self._monkeypatch.setenv("HEADRACE_ENCRYPTION_KEYS", given)
        return self._settings.model_copy(update={"encryption_keys": given})

    def run(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["encryption", *arguments])
        return done.exit_code, done.output


@pytest.fixture
def operator(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Operator:
    return Operator(settings, monkeypatch)


def database(settings: Settings) -> Database:
    return Database(settings.database_url, pool_size=2, application_name="tests", seal=open_seal(settings))


def accepted(db: Database, *new: jobs.NewJob) -> list[str]:
    return [outcome.job_id for outcome in jobs.accept(db, list(new)) if isinstance(outcome, Accepted)]


def fill(settings: Settings, tenant: str, make_job: MakeJob, client: redis.Redis) -> tuple[str, str, str]:
    """Store something in each place that is sealed; return the ended job, one that was handed back, and a file."""
    db = database(settings)
    endpoint = create_endpoint(db, tenant, url="https://hooks.example.com/", actor="tests")
    rotate_secret(db, tenant, endpoint.id, overlap_s=60, actor="tests")
    rotate_webhook_secret(db, tenant, overlap_s=60, actor="tests")
    new = NewResponse(None, True, True, [{"text": "asked"}], {"instructions": "asked"})
    own = {"url": "https://hooks.example.com/own", "events": ["job.failed"]}
    done, given = accepted(db, make_job(metadata={"order": "42"}, response=new, webhook=own), make_job())
    claim(db, "worker", QUEUE, [done, given], 60)
    error = {"code": "tool_timeout", "message": "said", "retryable": False, "attempt": 1}
    ended = Finish(done, 1, JobState.FAILED, {"text": "said"}, error, None, ["said"], tenant_id=tenant)
    assert finish(db, [ended]) == {done}
    release(db, [Release(given, 1, checkpoint=HANDED_BACK, tenant_id=tenant)])
    draft = open_blobs(settings).create()
    draft.write(b"content")
    file = files.create(db, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=100)
    batches.create(
        db, tenant, batches.NewBatch("/v1/x", "24h", 60, {"b": "c"}, None, new_id("f"), None, "key_1", None), file
    )
    prompt_templates.create(db, tenant, name="", template={"instructions": "asked"}, actor="tests")
    tools.create(db, tenant, "weather", HttpTool(url="https://tools.example.com/"), actor="tests")
    asked = ask_approval(db, tenant, given)
    decide(db, tenant, given, asked, approve=False, reason="too dear", actor="tests")
    publisher = StreamPublisher(client, maxlen=10, ttl_s=60, seal=open_seal(settings))
    publisher.publish([Frame(given, 1, 1, "said", (1,))])
    db.close()
    return done, given, file.digest


def secrets_of(db: Database) -> set[tuple[str, ...]]:
    """What signs the deliveries that are due."""
    found = {delivery.secrets for delivery in take_due(db, 10, 0)}
    assert [len(secrets) for secrets in found] == [2, 2]
    return found


def test_a_rotation_leaves_nothing_that_needs_the_old_key(
    operator: Operator,
    tenant: str,
    make_job: MakeJob,
    redis_client: redis.Redis,
) -> None:
    plain = database(operator.with_keys())
    (unsealed,) = accepted(plain, make_job(metadata={"order": "41"}))
    done, given, digest = fill(operator.with_keys(OLD), tenant, make_job, redis_client)
    old = database(operator.with_keys(OLD))
    was_said = secrets_of(old)
    old.close()
    operator.with_keys(NEW, OLD)
    code, said = operator.run("status")
    assert code == 0
    assert "new seals (nothing)" in said
    for place in (
        "jobs",
        "attempts",
        "job_streams",
        "job_checkpoints",
        "responses",
        "batches",
        "prompt_versions",
        "tools",
        "tool_approvals",
        "webhook_secrets",
        "webhook_endpoints",
        "files",
    ):
        assert f" in {place}" in said.split("old is still needed", 1)[1], place
    assert "(2 in jobs, 1 in tenants, 1 in webhook_secrets)" in said.split("not sealed", 1)[1]
    code, said = operator.run("rotate")
    assert (code, "sealed under new" in said) == (0, True)
    assert "old is needed" in said
    redis_client.flushdb()
    assert "no longer" in operator.run("status")[1]
    assert operator.run("rotate")[1].startswith("0 values sealed")
    after = operator.with_keys(NEW)
    db = database(after)
    assert jobs.get(db, tenant, done).output == {"text": "said"}
    assert [job.id for job in jobs.list_jobs(db, tenant, metadata={"order": "42"})] == [done]
    assert [job.id for job in jobs.list_jobs(db, tenant, metadata={"order": "41"})] == [unsealed]
    stream = jobs.stored_deltas(db, tenant, done)
    assert stream is not None
    assert stream.deltas == ["said"]
    assert stored_responses.get(db, tenant, done).request == {"instructions": "asked"}
    assert stored_responses.get_input(db, tenant, done) == [{"text": "asked"}]
    assert batches.list_batches(db, tenant, limit=5)[0].metadata == {"b": "c"}
    assert b"".join(read_blocks(open_blobs(after), digest)) == b"content"
    claimed = claim(db, "worker", QUEUE, [given, unsealed], 60)
    assert claimed[given].checkpoint == HANDED_BACK
    assert claimed[unsealed].payload == make_job().payload
    assert secrets_of(db) == was_said
    db.close()
    plain.close()


def test_a_conversation_in_plaintext_is_sealed_by_a_rotation_and_still_read(operator: Operator, tenant: str) -> None:
    said = {"id": "msg_1", "type": "message", "role": "user", "content": "asked"}
    plain = database(operator.with_keys())
    made = conversations.create(plain, tenant, metadata={"order": "42"}, items=[said])
    plain.close()
    sealing = operator.with_keys(NEW)
    code, told = operator.run("rotate")
    assert (code, "1 in conversation_items" in told) == (0, True), told
    db = database(sealing)
    assert conversations.get(db, tenant, made.id).metadata == {"order": "42"}
    assert conversations.list_items(db, tenant, made.id, limit=5, after=None, descending=False) == [said]
    db.close()


def test_a_missing_key_is_named_and_loses_nothing(
    operator: Operator,
    tenant: str,
    make_job: MakeJob,
    redis_client: redis.Redis,
) -> None:
    done, given, _ = fill(operator.with_keys(OLD), tenant, make_job, redis_client)
    operator.with_keys(NEW)
    code, said = operator.run("status")
    assert (code, "old IS MISSING" in said) == (1, True)
    code, said = operator.run("rotate")
    assert code == 1
    assert "key 'old'" in said
    assert "left as" in said
    without = database(operator.with_keys(NEW))
    with pytest.raises(CannotOpen):
        jobs.get(without, tenant, done)
    assert claim(without, "worker", QUEUE, [given], 60) == {}
    without.close()
    again = database(operator.with_keys(OLD))
    job = jobs.get(again, tenant, given)
    assert (job.state, job.attempt, job.announced_at is not None) == (JobState.QUEUED, 0, True), "it waits for its turn"
    assert set(claim(again, "worker", QUEUE, [given], 60)) == {given}
    again.close()


def test_another_key_of_a_known_id_is_refused_until_the_id_is_free(operator: Operator) -> None:
    operator.with_keys(OLD)
    assert operator.run("status")[0] == 0
    operator.with_keys(f"old:{new_key()}")
    assert "'old' is another" in str(CliRunner().invoke(app, ["encryption", "status"]).exception)
    assert operator.run("forget", "old")[0] == 0
    assert operator.run("status")[0] == 0


def test_a_new_key_is_good(operator: Operator) -> None:
    code, said = operator.run("new-key")
    assert code == 0
    assert [*open_seal(operator.with_keys(f"k:{said.strip()}")).checks()] == ["k"]
    operator.with_keys()
    assert "no key" in str(CliRunner().invoke(app, ["encryption", "rotate"]).exception)
