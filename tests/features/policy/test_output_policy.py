"""Text removed by a policy never leaves the worker, for any split of the output and any client."""

import json
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx2
import pytest
import redis
from openai import APIError, BadRequestError, OpenAI
from sqlalchemy import text

from headrace.features.policy.output_policy import StreamFilter
from headrace.policy.budget import Budget
from headrace.policy.documents import PolicyDocument
from headrace.policy.placeholders import PlaceholderMap
from headrace.policy.policies import Policy, apply_output
from headrace.policy.recognisers.recogniser import STRUCTURED
from headrace.store.jobs import jobs
from headrace.store.scheduling import dispatch_queries
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Frame, read_frame, stream_key
from headrace.store.tenants import api_keys
from headrace.workers.tasks.generate import GenerateModel
from headrace.workers.worker_runtime import WorkerRuntime
from tests.policy.evaluation import first
from tests.processes import WAIT_S, wait_for
from tests.producer_api.calling import error_of, parse
from tests.producer_api.serving import serving
from tests.stored import everything_stored
from tests.workers.conftest import Bench, Duties, StartWorker
from tests.workers.scripted_model import PieceTokenizer, SayingRunner
from tests.workers.test_continuing import Reader, answer, submit
from tests.workers.test_continuing import api as api

KEYS = {"encryption_keys": "k1:"}
NO_TITAN = {"id": "no-titan", "deny": {"phrases": ["project titan"]}, "action": "block", "stage": "output"}
TITAN = ["Well, ", "proj", "ect ", "tit", "an", " is secret. ", *["more "] * 6000]
RESTORE = {"id": "pii", "kinds": ["email", "private_key"], "action": "redact", "stage": "input", "restore": True}
SECRET = "bob.unique@example.com"
ASK: Any = {"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}


@dataclass
class Stage:
    """A server, and a worker with a scripted model."""

    bench: Bench
    runtime: WorkerRuntime
    runner: SayingRunner
    api: httpx2.Client
    openai: OpenAI
    redis: redis.Redis
    feeder: "Feeder"

    def rule(self, *rules: dict[str, Any]) -> None:
        """Set the tenant's policy, before anything is asked for."""
        response = self.api.put("/v1/policies", json={"document": {"rules": list(rules)}})
        assert response.status_code == 200, response.text

    def submit(self, pieces: Sequence[str], **sampling: Any) -> str:
        """Ask for an answer in these pieces; return the job's id."""
        prompt = self.runner.script(pieces)
        body = {"model": "fake", "input": {"prompt": prompt}, "sampling": {"temperature": 0, **sampling}}
        response = self.api.post("/v1/jobs", json=body)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for the job's end and return it as its owner sees it."""
        return dict(self.api.get(f"/v1/jobs/{job_id}?wait=30").json())

    def frames(self, job_id: str) -> list[str]:
        """The texts in the job's log in Redis."""
        entries: Any = self.redis.xrange(stream_key(job_id))
        read = [read_frame(job_id, entry_id, f[b"k"], f[b"t"], f[b"i"]) for entry_id, f in entries]
        assert not any(frame.token_ids for frame in read)
        return [frame.text for frame in read if frame.text is not None]

    def stored(self) -> str:
        return everything_stored(self.bench.db, self.redis)


class Feeder(threading.Thread):
    """Gives every job that waits to the runtime, as Celery would."""

    def __init__(self, bench: Bench, runtime: WorkerRuntime) -> None:
        super().__init__(name="feeder", daemon=True)
        self._bench, self._runtime = bench, runtime
        self._threads = ThreadPoolExecutor(32)
        self._stopped = threading.Event()
        self.is_open = threading.Event()
        self.is_open.set()

    def run(self) -> None:
        db, queue = self._bench.db, self._bench.queue
        while not self._stopped.wait(0.005):
            self.is_open.wait()
            for job_id in {
                *dispatch_queries.take_waiting(db, queue, 64),
                *dispatch_queries.take_stale(db, queue, 0.2, 64),
            }:
                self._threads.submit(self._runtime.job_runner.run, job_id)

    def stop(self) -> None:
        self._stopped.set()
        self.join(WAIT_S)
        self._threads.shutdown()


@pytest.fixture
def stage(bench: Bench, settings: Settings, redis_client: redis.Redis) -> Iterator[Stage]:
    yield from on_stage(bench, settings, redis_client)


@pytest.fixture
def sealed(bench: Bench, settings: Settings, redis_client: redis.Redis, turned_seal: None) -> Iterator[Stage]:
    """The same with encryption of stored content."""
    yield from on_stage(bench, settings.model_copy(update=KEYS), redis_client)


def on_stage(bench: Bench, settings: Settings, redis_client: redis.Redis) -> Iterator[Stage]:
    settings = settings.model_copy(update={"stream_deltas_per_s": float("inf"), "lease_s": 60})
    tokenizer = PieceTokenizer()
    runner = SayingRunner(tokenizer)
    runtime = WorkerRuntime(
        settings, GenerateModel(bench.version, runner, tokenizer), owner="w", max_jobs=64, exit_now=lambda _: None
    )
    runtime.start()
    feeder = Feeder(bench, runtime)
    feeder.start()
    key = api_keys.create_key(bench.db, bench.tenant_id, "all", api_keys.SCOPES, actor="tests")
    headers = {"Authorization": f"Bearer {key}"}
    with (
        serving(settings) as server,
        httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client,
        OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as openai,
    ):
        yield Stage(bench, runtime, runner, client, openai, redis_client, feeder)
    feeder.stop()
    runtime.stop()


def cut(text: str, draw: random.Random) -> list[str]:
    """Return the text in pieces of random lengths."""
    places = sorted(draw.sample(range(1, len(text)), min(len(text) - 1, draw.choice([1, 3, 10, len(text)]))))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def test_at_no_split_does_anything_marked_leave(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"id": "pii", "kinds": STRUCTURED, "action": "redact", "stage": "output"}]
    stage.rule(*rules)
    policy = Policy(PolicyDocument.model_validate({"rules": rules}))
    draw = random.Random(7)
    marked = [case for case in first() if case.marked][::48]
    texts = {}
    for case in marked:
        said = f"He said: {case.text} - and so on."
        texts[stage.submit(cut(said, draw), max_tokens=2000)] = said
    for job_id, said in texts.items():
        job = stage.ended(job_id)
        expected = apply_output(policy, said).text
        assert (job["status"], job["output"]["text"]) == ("succeeded", expected)
        kept = jobs.stored_deltas(stage.bench.db, stage.bench.tenant_id, job_id)
        assert kept is not None
        assert "".join(kept.deltas) == expected
        frames = stage.frames(job_id)
        assert frames == kept.deltas[: len(frames)]
    told = capsys.readouterr()
    everywhere = stage.stored() + told.out + told.err
    for case in marked:
        for start, end, _ in case.marked:
            assert end - start < 8 or case.text[start:end] not in everywhere, case.text


def test_a_blocked_answer_ends_in_the_policys_error_at_every_door(stage: Stage) -> None:
    stage.rule(NO_TITAN)
    job_id = stage.submit(TITAN)
    job = stage.ended(job_id)
    assert (job["status"], job["output"], job["error"]["code"]) == ("failed", None, "policy_blocked_output")
    assert job["error"]["rule"] == "no-titan"
    events = parse(stage.api.get(f"/v1/jobs/{job_id}/events").content)
    assert [event.name for event in events][-1] == "job.failed"
    assert 0 < job["usage"]["output_tokens"] < len(TITAN), "it was ended at once, and what was generated is paid for"
    with stage.bench.db.begin() as connection:
        row = connection.execute(text("SELECT output_tokens FROM usage_ledger WHERE job_id = :id"), {"id": job_id})
        assert row.scalar_one() == job["usage"]["output_tokens"]
    ask: Any = {"model": "fake", "messages": [{"role": "user", "content": stage.runner.script(TITAN)}]}
    with pytest.raises(BadRequestError) as whole:
        stage.openai.chat.completions.create(**ask)
    assert (whole.value.code, "no-titan" in str(whole.value)) == ("policy_blocked_output", True)
    said = []
    with pytest.raises(APIError, match="no-titan"):
        said += [part.choices[0].delta.content for part in stage.openai.chat.completions.create(**ask, stream=True)]
    with pytest.raises(APIError, match="no-titan"):
        list(stage.openai.completions.create(model="fake", prompt=stage.runner.script(TITAN), stream=True))
    made = stage.openai.responses.create(model="fake", input=stage.runner.script(TITAN), stream=True)
    *_, last = made
    assert (last.type, "no-titan" in str(last)) == ("response.failed", True)
    assert stage.frames(job_id) == ["Well, "]
    assert not any(left in stage.stored() for left in ("titan is", "is secret"))


def test_nothing_is_shown_after_a_delta_that_is_missing() -> None:
    policy = Policy(PolicyDocument.model_validate({"rules": [NO_TITAN]}))
    gate = StreamFilter(lambda: policy.guarded_output(PlaceholderMap()), on_blocked=lambda: None)
    shown = [gate.passed(Frame("job_1", 1, seq, f"w{seq}. ")) for seq in (1, 3, 4, 2, 3, 4, 5)]
    assert [frame is not None for frame in shown] == [True, *[False] * 6]


def test_frames_have_numbers_without_holes_however_much_is_held_back() -> None:
    """A reader that finds a hole waits for the job's end."""
    policy = Policy(PolicyDocument.model_validate({"rules": [NO_TITAN]}))
    gate = StreamFilter(lambda: policy.guarded_output(PlaceholderMap()), on_blocked=lambda: None)
    pieces = ["Well, ", "proj", "ect ", "plan ", "it ", "is. "]
    passed = [gate.passed(Frame("job_1", 1, seq, piece)) for seq, piece in enumerate(pieces, start=1)]
    shown = [frame for frame in passed if frame is not None]
    assert "".join(frame.text or "" for frame in shown) == "".join(pieces)
    assert [frame.seq for frame in shown] == [*range(1, len(shown) + 1)]
    assert len(shown) < len(pieces)


def test_values_are_put_back_for_the_caller_alone(sealed: Stage) -> None:
    """Placeholders are split across pieces; stored content has neither placeholders nor plain values."""
    stage = sealed
    stage.rule(RESTORE)
    pieces = ["I wrote to <", "EMA", "IL_1", ">", " and not to <EMAIL_2>."]
    said = f"I wrote to {SECRET} and not to <EMAIL_2>."
    prompt = f"Write to {SECRET}. {stage.runner.script(pieces)}"
    made = stage.api.post("/v1/jobs", json={"model": "fake", "input": {"prompt": prompt}}).json()
    assert stage.ended(made["id"])["output"]["text"] == said
    assert stage.api.get("/v1/jobs").json()["data"][0]["output"]["text"] == said
    events = parse(stage.api.get(f"/v1/jobs/{made['id']}/events").content)
    assert "".join(event.data["text"] for event in events if event.name == "job.delta") == said
    ask: Any = {"model": "fake", "messages": [{"role": "user", "content": prompt}]}
    assert stage.openai.chat.completions.create(**ask).choices[0].message.content == said
    parts = [part.choices[0].delta.content or "" for part in stage.openai.chat.completions.create(**ask, stream=True)]
    assert "".join(parts) == said
    first = stage.openai.responses.create(model="fake", input=prompt)
    again = stage.runner.script(["Still <EMAIL_1>"])
    second = stage.openai.responses.create(
        model="fake", input=f"And now? {again}", previous_response_id=first.id, stream=True
    )
    assert first.output_text == said
    assert "".join(one.delta for one in second if one.type == "response.output_text.delta") == f"Still {SECRET}"
    talk = stage.openai.conversations.create().id
    told = [stage.openai.responses.create(model="fake", input=text, conversation=talk) for text in (prompt, again)]
    assert [one.output_text for one in told] == [said, f"Still {SECRET}"]
    assert SECRET not in stage.stored()


def test_a_call_of_a_function_is_guarded_and_has_its_values_as_json(sealed: Stage) -> None:
    stage = sealed
    stage.rule(RESTORE, {"id": "out", "kinds": ["email"], "action": "redact", "stage": "output"})
    key = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----"
    call = json.dumps({"name": "mail", "parameters": {"key": "<PRIVATE_KEY_1>", "to": SECRET}})
    call = call.replace("@", "\\u0040")
    ask: Any = {
        "model": "fake",
        "messages": [{"role": "user", "content": f"{key} {stage.runner.script(cut(call, random.Random(3)))}"}],
        "tools": [ASK],
    }
    wanted = {"key": key, "to": "<EMAIL_1>"}
    whole = stage.openai.chat.completions.create(**ask).choices[0].message.tool_calls
    assert whole is not None
    assert json.loads(whole[0].function.arguments) == wanted  # type: ignore[union-attr]
    parts = [
        part.choices[0].delta.tool_calls or [] for part in stage.openai.chat.completions.create(**ask, stream=True)
    ]
    assert json.loads("".join(one.function.arguments or "" for each in parts for one in each if one.function)) == wanted


def test_rules_about_whole_answers_let_nothing_leave_before_its_end(stage: Stage) -> None:
    schema = {"type": "object", "properties": {"city": {}}, "required": ["city"], "additionalProperties": False}
    form = {"id": "form", "json_schema": schema, "action": "block", "stage": "output"}
    threats = {"id": "threats", "json_schema": {"not": {"required": ["city"]}}, "action": "flag", "stage": "output"}
    stage.rule(form, threats)
    wrong, right = ['{"name": ', '"I will kill you"}'], ['{"city"', ': "I will kill you"}']
    bad, good = (stage.ended(stage.submit(pieces)) for pieces in (wrong, right))
    assert (bad["status"], bad["error"]["rule"], stage.frames(bad["id"])) == ("failed", "form", [])
    assert (good["output"]["text"], stage.frames(good["id"])) == ("".join(right), [])
    assert good["output"]["policy"] == [{"rule": "threats", "kind": "json_schema", "action": "flag", "count": 1}]
    refused = stage.api.post("/v1/jobs", json={"model": "fake", "input": {"prompt": "x"}, "sampling": {"logprobs": 1}})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "sampling.logprobs")


def test_json_that_a_rule_breaks_is_blocked_by_it(stage: Stage) -> None:
    stage.rule({"id": "cards", "kinds": ["card"], "action": "mask", "stage": "output"})
    grammar = {"grammar": {"kind": "json_schema", "text": "{}"}}
    number, string = (
        stage.ended(stage.submit(cut(said, random.Random(2)), **grammar))
        for said in ('{"card": 4526018159083012}', '{"card": "\\u0034526018159083012"}')
    )
    assert (number["status"], number["error"]["rule"]) == ("failed", "cards")
    assert json.loads(string["output"]["text"]) == {"card": "************3012"}


def test_a_job_stays_under_the_version_it_came_under(stage: Stage) -> None:
    stage.rule({"id": "mails", "kinds": ["email"], "action": "mask", "stage": "output"})
    stage.feeder.is_open.clear()
    job_id = stage.submit([SECRET, " is his"])
    stage.rule({"id": "nothing", "kinds": ["card"], "action": "mask", "stage": "output"})
    stage.feeder.is_open.set()
    assert stage.ended(job_id)["output"]["text"] == "***.******@*******.*** is his"


def test_an_attempt_that_is_handed_back_leaves_nothing_of_what_the_model_said(stage: Stage) -> None:
    stage.rule({"id": "mails", "kinds": ["email"], "action": "mask", "stage": "output"})
    stage.runner.step_s = 0.01
    job_id = stage.submit([SECRET, *[" and more"] * 300])
    wait_for(lambda: len(stage.frames(job_id)) > 3, "some of it was shown")
    stage.feeder.is_open.clear()
    stage.runtime.hand_back()
    assert stage.bench.job(job_id).state is JobState.QUEUED
    assert stage.bench.query("SELECT count(*) AS n FROM job_checkpoints")[0].n == 0
    assert SECRET not in stage.stored()
    stage.feeder.is_open.set()


def test_a_batchs_answers_are_guarded_and_keep_their_placeholders(sealed: Stage) -> None:
    stage = sealed
    stage.rule(RESTORE, NO_TITAN)
    scripts = [stage.runner.script(["To <EMAIL_1>"]), stage.runner.script(TITAN)]
    body = {"model": "fake", "max_tokens": 50}
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body | {"prompt": f"{SECRET} {one}"}}
        for n, one in enumerate(scripts)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = stage.openai.files.create(file=("in.jsonl", content), purpose="batch")
    batch = stage.openai.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    wait_for(lambda: stage.openai.batches.retrieve(batch.id).status == "completed", "the batch has ended")
    ended = stage.openai.batches.retrieve(batch.id)
    output, errors = (stage.openai.files.content(str(one)).text for one in (ended.output_file_id, ended.error_file_id))
    assert json.loads(output)["response"]["body"]["choices"][0]["text"] == "To <EMAIL_1>"
    assert json.loads(errors)["response"]["body"]["error"]["code"] == "policy_blocked_output"


@pytest.mark.full
def test_an_attempt_after_a_lost_one_begins_anew_and_nobody_notices(
    bench: Bench,
    duties: Duties,
    api: httpx2.Client,
    start_worker: StartWorker,
    redis_client: redis.Redis,
) -> None:
    rule = {"id": "words", "deny": {"phrases": ["the", "river", "mill gate"]}, "action": "mask", "stage": "output"}
    put = api.put("/v1/policies", json={"document": {"rules": [rule]}})
    assert put.status_code == 200, put.text
    wanted = apply_output(Policy(PolicyDocument.model_validate({"rules": [rule]})), answer()).text
    assert wanted != answer()
    worker = start_worker(fake_step_ms=50)
    job_id = submit(api)
    watcher = Reader().read(api, "GET", f"/v1/jobs/{job_id}/events")
    body = {"model": "fake", "prompt": "say", "max_tokens": 150, "ignore_eos": True, "seed": 3, "stream": True}
    reader = Reader().read(api, "POST", "/v1/completions", body)
    reader.wait_for(b'"text"', 5)
    watcher.wait_for(b"job.delta", 5)
    entries: Any = redis_client.xrange(stream_key(job_id))
    assert not any(fields[b"i"] for _, fields in entries)
    worker.signal(signal.SIGKILL)
    worker.wait_exit()
    bench.end_leases()
    start_worker(fake_step_ms=1)
    events = parse(watcher.rest())
    *_, restart = (index for index, event in enumerate(events) if event.name == "job.restarted")
    assert "".join(event.data["text"] for event in events[restart:] if event.name == "job.delta") == wanted
    assert events[-1].data["output"]["text"] == wanted
    chunks = reader.rest().decode().split("\n\n")
    assert chunks[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks[:-2] if chunk.startswith("data")]
    kept = bench.job(reader.headers["x-job-id"])
    assert "".join(part["choices"][0]["text"] for part in parts) == (kept.output or {})["text"] != ""
    assert kept.epoch > 1


def test_an_answer_that_takes_too_long_to_look_through_does_not_leave(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.rule(NO_TITAN)
    monkeypatch.setattr("headrace.policy.outputs.output_budget", lambda: Budget(0.0, a_character=0.0))
    job_id = stage.submit(["nothing of this " * 1000, "may leave"])
    job = stage.ended(job_id)
    assert (job["status"], job["output"], job["error"]["code"]) == ("failed", None, "policy_scan_too_long")
    assert stage.frames(job_id) == []
