"""The audit log over the API: every route that changes something for others leaves a row, and its owner can read it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
import pytest
import structlog
from openai import OpenAI
from sqlalchemy import text

from headrace.features.audit.hash_chain import Problem, Verifier
from headrace.models.catalog import register
from headrace.producer_api.access.auth import LOG_AGAIN_AFTER_S, RefusalLog
from headrace.store import audit_log as audit
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.registry.models import register_version
from headrace.store.tenants import api_keys
from tests.processes import wait_for
from tests.producer_api.calling import bury, error_of, submit
from tests.producer_api.conftest import MakeClient
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.store.making import ask_approval

LOGS = "/v1/organization/audit_logs"
# Never to be in a row: a prompt, an answer, and whatever was given as one.
SECRET = "xyzzy-do-not-tell"
PIPELINE = {"name": "digest", "steps": [{"name": "only", "model": "tiny", "input": {"prompt": SECRET}}]}


@dataclass(frozen=True)
class Caller:
    """A caller with all scopes."""

    api: httpx2.Client
    db: Database
    worker: ScriptedWorker

    def made(self, path: str, body: dict[str, Any]) -> str:
        """Make something and return its id."""
        response = self.api.post(path, json=body)
        assert response.is_success, response.text
        return str(response.json()["id"])

    def aliased_prompt(self) -> str:
        """Make a prompt with an alias and return its path."""
        path = f"/v1/prompts/{self.made('/v1/prompts', TEMPLATE)}"
        assert self.api.put(f"{path}/aliases/default", json={"version": 1}).is_success
        return path

    def pipeline(self, *, is_aliased: bool = False) -> str:
        """Make a pipeline and return its path."""
        path = f"/v1/pipelines/{self.made('/v1/pipelines', PIPELINE | {'name': new_id('p')})}"
        assert not is_aliased or self.api.put(f"{path}/aliases/default", json={"version": 1}).is_success
        return path

    def pipeline_rollout(self) -> httpx2.Response:
        """Start a rollout of a new pipeline."""
        path = self.pipeline(is_aliased=True)
        assert self.api.post(f"{path}/versions", json={"steps": PIPELINE["steps"]}).is_success
        return self.api.post(f"{path}/rollouts", json={"version": 2, "steps": [{"percent": 1, "hold_s": 60}]})

    def change_pipeline_rollout(self, verb: str) -> httpx2.Response:
        started = self.pipeline_rollout()
        return self.api.post(f"{started.request.url.path}/{started.json()['id']}/{verb}")

    def uploaded(self) -> str:
        form = {"data": {"purpose": "user_data"}, "files": {"file": ("a.txt", SECRET.encode())}}
        return str(self.api.post("/v1/files", **form).json()["id"])  # type: ignore[arg-type]

    def vector_store(self, *file_ids: str) -> str:
        """Make a vector store and return its path."""
        model = register(self.db, "vectors", "fake-encoder", "auto", actor="tests").model
        return f"/v1/vector_stores/{self.made('/v1/vector_stores', {'model': model, 'file_ids': file_ids})}"

    def endpoint(self) -> str:
        return self.made(HOOKS, {"url": f"https://hooks.example.com/{SECRET}/{new_id('x')}"})

    def gone_endpoint(self) -> str:
        """An endpoint that answered 410."""
        endpoint_id = self.endpoint()
        with self.db.begin() as connection:
            disable = text("UPDATE webhook_endpoints SET disabled_at = now() WHERE id = :id")
            connection.execute(disable, {"id": endpoint_id})
        return endpoint_id

    def delivery(self) -> str:
        return str(self.api.post(f"{HOOKS}/{self.endpoint()}/test").json()["id"])

    def ended(self) -> str:
        job_id = submit(self.api)
        self.worker.succeed(self.worker.claim(job_id))
        return job_id

    def ended_video(self) -> str:
        register(self.db, "filmer", "fake-video-pipeline", "auto", actor="tests")
        job_id = self.made("/v1/videos", {"model": "filmer", "prompt": SECRET})
        self.api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        return job_id

    def ended_message_batch(self) -> str:
        """A batch in which nothing is valid: it ends without a worker."""
        made = self.made("/v1/messages/batches", {"requests": [{"custom_id": "a", "params": {"model": SECRET}}]})
        wait_for(
            lambda: self.api.get(f"/v1/messages/batches/{made}").json()["processing_status"] == "ended", "it has ended"
        )
        return made

    def answered(self) -> str:
        with self.worker.serve(lambda _: [SECRET]):
            return self.made("/v1/responses", {"model": "tiny", "input": SECRET})

    def stored_chat(self) -> str:
        body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "store": True}
        with self.worker.serve(lambda _: [SECRET]):
            return self.made("/v1/chat/completions", body)

    def unused_version(self) -> str:
        """A version that no alias names."""
        digest = new_id("digest")
        values = {"source": "fake:tiny", "dtype": "float32", "context_window": 512, "files": {}, "actor": "tests"}
        made = register_version(self.db, model="tiny", runner="fake", digest=digest, **values)  # type: ignore[arg-type]
        return f"tiny@{made.version}"

    def rollout(self) -> dict[str, Any]:
        """The body of a rollout; an active one is ended first."""
        for one in self.api.get("/v1/rollouts", params={"active": True}).json()["data"]:
            self.api.post(f"/v1/rollouts/{one['id']}/abort").raise_for_status()
        version = int(self.unused_version().partition("@")[2])
        return {"model": "tiny", "version": version, "steps": [{"percent": 1, "hold_s": 60}]}

    def change_rollout(self, verb: str) -> httpx2.Response:
        return self.api.post(f"/v1/rollouts/{self.made('/v1/rollouts', self.rollout())}/{verb}")

    def parked_call(self) -> str:
        """A call that waits for an approval; return the path of the approval."""
        job_id = submit(self.api)
        owner = api_keys.authenticate(self.db, self.api.headers["authorization"].removeprefix("Bearer "))
        approval_id = ask_approval(self.db, owner.tenant_id, job_id)
        return f"/v1/jobs/{job_id}/approvals/{approval_id}"

    def retired_version(self) -> str:
        name = self.unused_version()
        assert self.api.post(f"/v1/model_versions/{name}/retire").is_success
        return name


HOOKS = "/v1/webhook_endpoints"
SCHEDULES = "/v1/schedules"
KEYS = "/v1/organization/api_keys"
KEY = {"name": "ci", "scopes": ["jobs:read"]}
TOOLS = "/v1/tools"
TEMPLATE = {"instructions": f"Say {SECRET}."}
CHAT_SERVER = {"engine": {"kind": "openai", "url": "http://127.0.0.1:9", "context_window": 512}}
RULES = {"rules": [{"id": "r", "kinds": ["email"], "action": "redact", "stage": "input"}]}


def schedule() -> dict[str, object]:
    """Return a schedule with a name of its own."""
    job = {"model": "tiny", "input": {"prompt": SECRET}}
    return {"name": new_id("sched").replace("_", "-"), "cron": "0 7 * * *", "job": job}


def replaced_schedule(caller: "Caller") -> httpx2.Response:
    """Replace a schedule by one with the same name."""
    body = schedule()
    return caller.api.put(f"{SCHEDULES}/{caller.made(SCHEDULES, body)}", json=body)


def tool() -> dict[str, object]:
    """Return a tool with a name of its own."""
    return {"name": new_id("tool"), "url": "https://tools.example.com/", "headers": {"Authorization": SECRET}}


# The audit entry of each route, and a call that makes it.
Call = Callable[[Caller], httpx2.Response]
AUDITED: dict[tuple[str, str], tuple[str, Call]] = {
    ("post", SCHEDULES): ("schedule.created", lambda c: c.api.post(SCHEDULES, json=schedule())),
    ("post", SCHEDULES + "/{schedule}/pause"): (
        "schedule.paused",
        lambda c: c.api.post(f"{SCHEDULES}/{c.made(SCHEDULES, schedule())}/pause"),
    ),
    ("post", SCHEDULES + "/{schedule}/resume"): (
        "schedule.resumed",
        lambda c: c.api.post(f"{SCHEDULES}/{c.made(SCHEDULES, schedule())}/resume"),
    ),
    ("put", SCHEDULES + "/{schedule}"): ("schedule.replaced", replaced_schedule),
    ("delete", SCHEDULES + "/{schedule}"): (
        "schedule.deleted",
        lambda c: c.api.delete(f"{SCHEDULES}/{c.made(SCHEDULES, schedule())}"),
    ),
    ("post", KEYS): ("api_key.created", lambda c: c.api.post(KEYS, json=KEY)),
    ("patch", KEYS + "/{key_id}"): (
        "api_key.updated",
        lambda c: c.api.patch(f"{KEYS}/{c.made(KEYS, KEY)}", json={"scopes": ["jobs:write"]}),
    ),
    ("post", KEYS + "/{key_id}/rotate"): (
        "api_key.rotated",
        lambda c: c.api.post(f"{KEYS}/{c.made(KEYS, KEY)}/rotate"),
    ),
    ("delete", KEYS + "/{key_id}"): ("api_key.revoked", lambda c: c.api.delete(f"{KEYS}/{c.made(KEYS, KEY)}")),
    ("put", "/v1/organization/limits"): (
        "limits.set",
        lambda c: c.api.put("/v1/organization/limits", json={"concurrent_jobs": 1000}),
    ),
    ("put", KEYS + "/{key_id}/limits"): (
        "limits.set",
        lambda c: c.api.put(f"{KEYS}/{c.made(KEYS, KEY)}/limits", json={"concurrent_jobs": 1000}),
    ),
    ("put", "/v1/organization/retention"): (
        "retention.set",
        lambda c: c.api.put("/v1/organization/retention", json={"outputs_days": 1}),
    ),
    ("delete", "/v1/jobs/{job_id}"): ("job.purged", lambda c: c.api.delete(f"/v1/jobs/{c.ended()}")),
    ("delete", "/v1/videos/{video_id}"): ("job.purged", lambda c: c.api.delete(f"/v1/videos/{c.ended_video()}")),
    ("delete", "/v1/files/{file_id}"): ("file.deleted", lambda c: c.api.delete(f"/v1/files/{c.uploaded()}")),
    ("delete", "/v1/messages/batches/{message_batch_id}"): (
        "batch.deleted",
        lambda c: c.api.delete(f"/v1/messages/batches/{c.ended_message_batch()}"),
    ),
    ("delete", "/v1/responses/{response_id}"): (
        "response.deleted",
        lambda c: c.api.delete(f"/v1/responses/{c.answered()}"),
    ),
    ("delete", "/v1/chat/completions/{completion_id}"): (
        "chat.deleted",
        lambda c: c.api.delete(f"/v1/chat/completions/{c.stored_chat()}"),
    ),
    ("delete", "/v1/conversations/{conversation_id}"): (
        "conversation.deleted",
        lambda c: c.api.delete(f"/v1/conversations/{c.made('/v1/conversations', {})}"),
    ),
    ("delete", "/v1/vector_stores/{vector_store_id}"): (
        "vector_store.deleted",
        lambda c: c.api.delete(c.vector_store()),
    ),
    ("delete", "/v1/vector_stores/{vector_store_id}/files/{file_id}"): (
        "vector_store.file_removed",
        lambda c: c.api.delete(f"{c.vector_store(file_id := c.uploaded())}/files/{file_id}"),
    ),
    ("put", "/v1/models/{model}/aliases/{alias}"): (
        "model.alias_set",
        lambda c: c.api.put("/v1/models/tiny/aliases/stable", json={"version": 1}),
    ),
    ("delete", "/v1/models/{model}/aliases/{alias}"): (
        "model.alias_removed",
        lambda c: c.api.delete("/v1/models/tiny/aliases/stable"),
    ),
    ("put", "/v1/models/{model}/quality_bound"): (
        "model.quality_bound_set",
        lambda c: c.api.put("/v1/models/tiny/quality_bound", json={"max_kl": 0.02}),
    ),
    ("delete", "/v1/models/{model}/quality_bound"): (
        "model.quality_bound_set",
        lambda c: c.api.delete("/v1/models/tiny/quality_bound"),
    ),
    ("post", "/v1/models/{model}/versions"): (
        "model.registered",
        lambda c: c.api.post("/v1/models/far/versions", json=CHAT_SERVER),
    ),
    ("post", "/v1/model_versions/{version}/retire"): (
        "model.retired",
        lambda c: c.api.post(f"/v1/model_versions/{c.unused_version()}/retire"),
    ),
    ("post", "/v1/model_versions/{version}/revive"): (
        "model.revived",
        lambda c: c.api.post(f"/v1/model_versions/{c.retired_version()}/revive"),
    ),
    ("post", "/v1/dead_letters/replay"): (
        "dead_letter.replayed",
        lambda c: [bury(c.db, submit(c.api)), c.api.post("/v1/dead_letters/replay", json={})][1],  # type: ignore[return-value]
    ),
    ("post", "/v1/dead_letters/{job_id}/replay"): (
        "dead_letter.replayed",
        lambda c: c.api.post(f"/v1/dead_letters/{bury(c.db, submit(c.api))}/replay"),
    ),
    ("post", "/v1/jobs/{job_id}/approvals/{approval_id}"): (
        "tool_call.refused",
        lambda c: c.api.post(c.parked_call(), json={"approve": False, "reason": SECRET}),
    ),
    ("post", TOOLS): ("tool.created", lambda c: c.api.post(TOOLS, json=tool())),
    ("put", TOOLS + "/{tool_id}"): (
        "tool.updated",
        lambda c: c.api.put(f"{TOOLS}/{c.made(TOOLS, tool())}", json={"url": f"https://tools.example.com/{SECRET}"}),
    ),
    ("delete", TOOLS + "/{tool_id}"): ("tool.deleted", lambda c: c.api.delete(f"{TOOLS}/{c.made(TOOLS, tool())}")),
    ("post", "/v1/prompts"): ("prompt.created", lambda c: c.api.post("/v1/prompts", json=TEMPLATE)),
    ("post", "/v1/prompts/{prompt_id}/versions"): (
        "prompt.version_added",
        lambda c: c.api.post(f"/v1/prompts/{c.made('/v1/prompts', TEMPLATE)}/versions", json=TEMPLATE),
    ),
    ("delete", "/v1/prompts/{prompt_id}"): (
        "prompt.deleted",
        lambda c: c.api.delete(f"/v1/prompts/{c.made('/v1/prompts', TEMPLATE)}"),
    ),
    ("put", "/v1/prompts/{prompt_id}/aliases/{alias}"): (
        "prompt.alias_set",
        lambda c: c.api.put(f"{c.aliased_prompt()}/aliases/stable", json={"version": 1}),
    ),
    ("delete", "/v1/prompts/{prompt_id}/aliases/{alias}"): (
        "prompt.alias_removed",
        lambda c: c.api.delete(f"{c.aliased_prompt()}/aliases/default"),
    ),
    ("post", "/v1/pipelines"): ("pipeline.created", lambda c: c.api.post("/v1/pipelines", json=PIPELINE)),
    ("post", "/v1/pipelines/{pipeline_id}/versions"): (
        "pipeline.version_added",
        lambda c: c.api.post(f"{c.pipeline()}/versions", json={"steps": PIPELINE["steps"]}),
    ),
    ("delete", "/v1/pipelines/{pipeline_id}"): ("pipeline.deleted", lambda c: c.api.delete(c.pipeline())),
    ("put", "/v1/pipelines/{pipeline_id}/aliases/{alias}"): (
        "pipeline.alias_set",
        lambda c: c.api.put(f"{c.pipeline()}/aliases/stable", json={"version": 1}),
    ),
    ("delete", "/v1/pipelines/{pipeline_id}/aliases/{alias}"): (
        "pipeline.alias_removed",
        lambda c: c.api.delete(f"{c.pipeline(is_aliased=True)}/aliases/default"),
    ),
    ("put", "/v1/policies"): ("policy.put", lambda c: c.api.put("/v1/policies", json={"document": RULES})),
    ("post", "/v1/queues/{name}/pause"): ("queue.paused", lambda c: c.api.post("/v1/queues/tiny@1/pause")),
    ("post", "/v1/queues/{name}/resume"): ("queue.resumed", lambda c: c.api.post("/v1/queues/tiny@1/resume")),
    ("post", HOOKS): (
        "webhook_endpoint.created",
        lambda c: c.api.post(HOOKS, json={"url": f"https://hooks.example.com/{SECRET}"}),
    ),
    ("patch", HOOKS + "/{endpoint_id}"): (
        "webhook_endpoint.updated",
        lambda c: c.api.patch(f"{HOOKS}/{c.endpoint()}", json={"url": f"https://hooks.example.com/{SECRET}/2"}),
    ),
    ("post", HOOKS + "/{endpoint_id}/rotate_secret"): (
        "webhook_endpoint.secret_rotated",
        lambda c: c.api.post(f"{HOOKS}/{c.endpoint()}/rotate_secret"),
    ),
    ("post", HOOKS + "/{endpoint_id}/test"): (
        "webhook_endpoint.tested",
        lambda c: c.api.post(f"{HOOKS}/{c.endpoint()}/test"),
    ),
    ("post", HOOKS + "/{endpoint_id}/enable"): (
        "webhook_endpoint.enabled",
        lambda c: c.api.post(f"{HOOKS}/{c.gone_endpoint()}/enable"),
    ),
    ("post", HOOKS + "/{endpoint_id}/recover"): (
        "webhook_endpoint.recovered",
        lambda c: c.api.post(f"{HOOKS}/{c.endpoint()}/recover", json={"since": 0}),
    ),
    ("post", "/v1/webhook_deliveries/{delivery_id}/redeliver"): (
        "webhook_delivery.redelivered",
        lambda c: c.api.post(f"/v1/webhook_deliveries/{c.delivery()}/redeliver"),
    ),
    ("post", "/v1/webhook_secret/rotate"): (
        "webhook_secret.rotated",
        lambda c: c.api.post("/v1/webhook_secret/rotate"),
    ),
    ("delete", HOOKS + "/{endpoint_id}"): (
        "webhook_endpoint.deleted",
        lambda c: c.api.delete(f"{HOOKS}/{c.endpoint()}"),
    ),
    ("post", "/v1/pipelines/{pipeline_id}/rollouts"): (
        "rollout.started",
        lambda c: c.pipeline_rollout(),
    ),
    ("post", "/v1/pipelines/{pipeline_id}/rollouts/{rollout}/{verb}"): (
        "rollout.paused",
        lambda c: c.change_pipeline_rollout("pause"),
    ),
    ("post", "/v1/rollouts"): ("rollout.started", lambda c: c.api.post("/v1/rollouts", json=c.rollout())),
    **{
        ("post", f"/v1/rollouts/{{rollout}}/{verb}"): (action, lambda c, verb=verb: c.change_rollout(verb))
        for verb, action in {
            "pause": "rollout.paused",
            "resume": "rollout.resumed",
            "abort": "rollout.aborted",
            "promote": "rollout.promoted",  # last: the others use the first version
        }.items()
    },
}

_JOBS = "makes or ends a job, whose own row and timeline say so"
_CONTENT = "changes what a conversation says, as a job of it does; that a conversation is deleted is on record"
_UPLOAD = "makes a file, which changes no other; what is removed is on record"
# What changes nothing for others, and why that is so.
OWN_WORK = {
    ("post", "/v1/jobs"): _JOBS,
    ("post", "/v1/jobs/{job_id}/cancel"): _JOBS,
    ("post", "/v1/pipelines/{pipeline_id}/jobs"): _JOBS,
    ("post", "/v1/celery/tasks"): _JOBS,
    ("post", "/v1/celery/tasks/{task_id}/cancel"): _JOBS,
    ("post", "/v1/celery/tasks/{task_id}/confirm"): "notes that the caller's own task has ended",
    ("post", "/v1/celery/ended"): "notes when a message was taken",
    ("post", "/v1/chat/completions"): _JOBS,
    ("post", "/v1/completions"): _JOBS,
    ("post", "/v1/embeddings"): _JOBS,
    ("post", "/v1/rerank"): _JOBS,
    ("post", "/v1/images/classify"): _JOBS,
    ("post", "/v1/images/edits"): _JOBS,
    ("post", "/v1/images/generations"): _JOBS,
    ("post", "/v1/images/zero_shot"): _JOBS,
    ("post", "/v1/videos"): _JOBS,
    ("post", "/v1/videos/{video_id}/remix"): "is refused",
    ("post", "/v1/tabular/predictions"): _JOBS,
    ("post", "/v1/recommendations"): _JOBS,
    ("post", "/v1/tasks/call_tool"): _JOBS,
    ("post", "/v1/classify"): _JOBS,
    ("post", "/v1/token_classify"): _JOBS,
    ("post", "/v1/audio/speech"): _JOBS,
    ("post", "/v1/audio/transcriptions"): _JOBS,
    ("post", "/v1/score"): _JOBS,
    ("post", "/v1/responses"): _JOBS,
    ("post", "/v1/messages"): _JOBS,
    ("post", "/v1/responses/{response_id}/cancel"): _JOBS,
    ("post", "/v1/messages/batches"): "many jobs, and the batch's own row says who asked for them",
    ("post", "/v1/messages/batches/{message_batch_id}/cancel"): "ends jobs; the batch's own row says when",
    ("post", "/v1/batches"): "many jobs, and the batch's own row says who asked for them",
    ("post", "/v1/batches/{batch_id}/retry"): "many jobs, and the new batch's own row says who asked for them",
    ("post", "/v1/batches/{batch_id}/cancel"): "ends jobs; the batch's own row says when",
    ("post", "/v1/files"): "adds a file, which changes no other; what is removed is on record",
    ("post", "/v1/chat/completions/{completion_id}"): "sets the metadata of the chat's own job",
    ("post", "/v1/conversations"): _CONTENT,
    ("post", "/v1/conversations/{conversation_id}"): _CONTENT,
    ("post", "/v1/conversations/{conversation_id}/items"): _CONTENT,
    ("delete", "/v1/conversations/{conversation_id}/items/{item_id}"): _CONTENT,
    ("post", "/v1/vector_stores"): _CONTENT,
    ("post", "/v1/vector_stores/{vector_store_id}"): _CONTENT,
    ("post", "/v1/vector_stores/{vector_store_id}/files"): _JOBS,
    ("post", "/v1/vector_stores/{vector_store_id}/files/{file_id}"): _CONTENT,
    ("post", "/v1/vector_stores/{vector_store_id}/file_batches"): _JOBS,
    ("post", "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel"): _JOBS,
    ("post", "/v1/vector_stores/{vector_store_id}/search"): _JOBS,
    ("post", "/v1/uploads"): _UPLOAD,
    ("post", "/v1/uploads/{upload_id}/parts"): _UPLOAD,
    ("post", "/v1/uploads/{upload_id}/complete"): _UPLOAD,
    ("post", "/v1/uploads/{upload_id}/cancel"): _UPLOAD,
    ("post", "/v1/moderations"): _JOBS,
    ("post", "/v1/responses/input_tokens"): "stores nothing",
    ("post", "/v1/messages/count_tokens"): "stores nothing",
    ("post", "/v1/tokenize"): "stores nothing",
    ("post", "/v1/detokenize"): "stores nothing",
    ("post", "/v1/prompts/{prompt_id}/render"): "stores nothing",
}


@pytest.fixture
def caller(make_client: MakeClient, db: Database, tenant: str, worker: ScriptedWorker) -> Caller:
    return Caller(make_client(api_keys.create_key(db, tenant, "boss", api_keys.SCOPES, actor="tests")), db, worker)


@pytest.mark.whole
def test_every_route_that_changes_something_is_on_one_of_the_lists(server: ApiServer) -> None:
    routes = {(method, path) for path, methods in server.app.openapi()["paths"].items() for method in methods}
    assert set(AUDITED).isdisjoint(OWN_WORK)
    assert {route for route in routes if route[0] not in ("get", "head")} == {*AUDITED, *OWN_WORK}


@pytest.mark.uses("templates", "webhooks")
def test_each_leaves_a_row_in_a_good_chain_that_tells_no_secret(
    caller: Caller, db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    boss = api_keys.authenticate(db, caller.api.headers["authorization"].removeprefix("Bearer ")).key_id
    for (method, path), (action, call) in AUDITED.items():
        with subtests.test(f"{method} {path}"):
            response = call(caller)
            assert response.is_success, response.text
            entry = audit.list_entries(db, tenant)[0]
            assert (entry.action, entry.actor) == (action, boss)
            assert (entry.request_id, entry.address) == (response.headers["x-request-id"], "127.0.0.1")
    with db.begin() as connection:
        stored = str(connection.execute(text("SELECT audit_log::text FROM audit_log")).all())
        told = text("SELECT secret FROM webhook_endpoints UNION SELECT secret FROM webhook_secrets")
        secrets = connection.execute(told).scalars().all()
    assert secrets
    for secret in (SECRET, *secrets, caller.api.headers["authorization"].split("_", 2)[2]):
        assert secret not in stored
    exported = caller.api.get(f"{LOGS}/export")
    assert exported.headers["content-type"] == "application/x-ndjson"
    verifier = Verifier()
    rows = [orjson.loads(line) for line in exported.content.splitlines()]
    assert [*filter(None, map(verifier.check, rows)), *verifier.check_ends()] == []
    assert {row["tenant_id"] for row in rows} == {tenant}
    assert len(rows) > len(AUDITED)
    forged = Verifier()
    finding = forged.check(rows[0] | {"actor": "x"})
    assert finding is not None
    assert (finding.problem, finding.id) == (Problem.CHANGED, rows[0]["id"])


def test_what_was_refused_leaves_no_row(caller: Caller, make_client: MakeClient, db: Database, tenant: str) -> None:
    reader = make_client(api_keys.create_key(db, tenant, "reader", ["audit:read"], actor="tests"))
    before = audit.list_entries(db, tenant)
    with structlog.testing.capture_logs() as told:
        for _ in range(3):
            assert reader.post("/v1/queues/tiny@1/pause").status_code == 403
            assert make_client(f"hr_a_{SECRET}").post("/v1/queues/tiny@1/pause").status_code == 401
        assert caller.api.post("/v1/queues/nobody@1/pause").status_code == 404
    assert audit.list_entries(db, tenant) == before
    lines = {line["code"]: line for line in told if line["event"] == "access_refused"}
    scope, key = lines["insufficient_scope"], lines["invalid_api_key"]
    assert (scope["route"], scope["method"], scope["address"]) == ("/v1/queues/{name}/pause", "POST", "127.0.0.1")
    assert scope["key_id"].startswith("key_")
    assert (key["route"], key["key_id"], key["address"]) == (None, None, "127.0.0.1")
    assert SECRET not in str(told)


def test_a_flood_of_refusals_is_a_line_a_second_that_says_how_many_it_stands_for() -> None:
    now = 10.0
    refusals = RefusalLog(clock=lambda: now)
    scope = {"method": "GET", "state": {}, "client": ("::1", 1)}
    with structlog.testing.capture_logs() as told:
        for _ in range(5):
            refusals.note("invalid_api_key", scope)
        refusals.note("not_found", scope)
        now += LOG_AGAIN_AFTER_S
        refusals.note("invalid_api_key", scope)
    assert [line["num_unsaid"] for line in told] == [0, 4]


def test_the_official_client_pages_and_filters(
    server: ApiServer, caller: Caller, db: Database, tenant: str, other_key: str
) -> None:
    key = caller.api.headers["authorization"].removeprefix("Bearer ")
    for _ in range(3):
        caller.api.post("/v1/queues/tiny@1/pause")
        caller.api.post("/v1/queues/tiny@1/resume")
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, admin_api_key=key, max_retries=0) as client:
        logs = client.admin.organization.audit_logs
        everything = list(logs.list(limit=2))
        assert [event.type for event in everything] == [*["queue.resumed", "queue.paused"] * 3, *MADE]
        newest, oldest = everything[0], everything[-1]
        assert newest.actor is not None
        assert newest.actor.api_key is not None
        boss = newest.actor.api_key.id
        assert (newest.actor.type, boss) == ("api_key", api_keys.authenticate(db, key).key_id)
        assert oldest.actor is not None
        assert oldest.actor.session is not None
        assert (oldest.actor.type, oldest.actor.session.user and oldest.actor.session.user.id) == ("session", "system")
        made = next(event for event in everything if event.type == "api_key.created")
        assert made.api_key_created is not None
        assert made.api_key_created.id == boss
        assert made.api_key_created.data is not None
        assert set(made.api_key_created.data.scopes or ()) == api_keys.SCOPES

        def ids(**asked: Any) -> list[str]:
            return [event.id for event in logs.list(**asked)]

        all_ids = [event.id for event in everything]
        assert ids(event_types=["queue.paused", "tenant.created"]) == [
            event.id for event in everything if event.type in ("queue.paused", "tenant.created")
        ]
        assert ids(actor_ids=[boss]) == all_ids[:6]
        assert ids(resource_ids=["tiny@1"], event_types=["queue.resumed"]) == all_ids[:6:2]
        assert ids(effective_at={"gte": oldest.effective_at, "lte": newest.effective_at}) == all_ids
        assert ids(effective_at={"gt": newest.effective_at}) == ids(effective_at={"lt": oldest.effective_at}) == []
        far = 1 << 34
        narrow: Any = ({"gt": far, "gte": 0}, {"gt": 0, "gte": far}, {"lt": far, "lte": 0}, {"lt": 0, "lte": far})
        assert [ids(effective_at=bounds) for bounds in narrow] == [[]] * 4, "both bounds hold"
        assert ids(effective_at={"gt": newest.effective_at - 1, "lt": newest.effective_at + 1})[0] == newest.id
        page = logs.list(before=all_ids[5], limit=2)
        assert ([event.id for event in page.data], page.has_more) == (all_ids[3:5], True)
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key="x", admin_api_key=other_key, max_retries=0)
    with stranger:
        theirs = [event.id for event in stranger.admin.organization.audit_logs.list()]
    assert theirs
    assert set(theirs).isdisjoint(all_ids)


def test_a_page_has_twenty_events_unless_asked_otherwise(caller: Caller) -> None:
    for _ in range(10):
        caller.api.post("/v1/queues/tiny@1/pause")
        caller.api.post("/v1/queues/tiny@1/resume")
    whole = caller.api.get(LOGS, params={"limit": 100}).json()
    ids = [one["id"] for one in whole["data"]]
    assert (len(ids), whole["has_more"]) == (20 + len(MADE), False)
    for asked, own, has_more in (
        ({}, ids[:20], True),
        ({"limit": len(ids)}, ids, False),
        ({"after": ids[1]}, ids[2:], False),
        ({"after": ids[1], "before": ids[9], "limit": 3}, ids[2:5], True),
        ({"before": ids[2]}, ids[:2], False),
    ):
        page = caller.api.get(LOGS, params=asked).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (own, has_more), asked


# The newest first: the tenant, its key and the boss's.
MADE = ["api_key.created", "tenant.created"]


def test_a_question_that_makes_no_sense_is_refused(caller: Caller) -> None:
    for query, param in (
        ("after=7", "after"),
        ("before=audit_x", "before"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("effective_at[gt]=-1", "effective_at[gt]"),
    ):
        response = caller.api.get(f"{LOGS}?{query}")
        assert (response.status_code, error_of(response)["param"]) == (400, param)
