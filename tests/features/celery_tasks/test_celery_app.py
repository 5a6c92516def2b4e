"""``headrace.celery`` in an app of a user: a real worker of Celery, a real API, jobs that the test ends."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from celery import Celery, chord, group
from celery.result import AsyncResult

from headrace.celery import JobFailed, JobRefused, embed, infer, job
from headrace.store.settings import Settings
from tests.processes import ROOT, Process, StartProcess, free_port, python, wait_for
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer
from tests.workers.conftest import Bench, StartWorker

PROJECT = """
import json
import time
from celery import Celery, shared_task
from celery.backends.redis import RedisBackend
import headrace.celery

class Slow(RedisBackend):
    # Stores a result once the test lets it.

    def store_result(self, *given, **named):
        self.client.set("storing", "1")
        while not self.client.exists("store"):
            time.sleep(0.02)
        return super().store_result(*given, **named)

app = Celery("shop")
app.conf.update(json.loads(open("conf.json").read()))

@shared_task(name="shop.shout")
def shout(answer):
    return answer["text"].upper()

@shared_task(name="shop.sort")
def sort(answers):
    return sorted(answer["text"] for answer in answers)

@shared_task(name="shop.note")
def note(*given):
    app.backend.client.rpush("notes", str(given[0]))

@shared_task(name="shop.note_error")
def note_error(request, error, traceback):
    app.backend.client.rpush("notes", f"{request.id}: {error}")
"""
CHAT = [{"role": "user", "content": "Hello"}]
WAIT_S = 60


class Shop:
    """The user's app in the test's process, its two databases in Redis, and its worker."""

    def __init__(self, app: Celery, broker: redis.Redis, results: redis.Redis, start: Callable[[], Process]) -> None:
        self.app = app
        self.broker = broker
        self.results = results
        self.start = start
        self.worker: Process | None = None

    def serve(self) -> Process:
        """Start a worker; return once it takes tasks."""
        self.worker = worker = self.start()
        wait_for(lambda: "ready." in worker.log() or worker.exit_code is not None, worker.log)
        assert worker.exit_code is None, worker.log()
        return worker

    def notes(self) -> list[str]:
        """What the tasks of the app have noted."""
        return [note.decode() for note in self.results.lrange("notes", 0, -1)]


@pytest.fixture
def shop(
    settings: Settings, server: ApiServer, key: str, tmp_path: Path, start_process: StartProcess
) -> Iterator[Shop]:
    path = settings.redis_url.removeprefix("unix://").partition("?")[0]
    conf = {
        "broker_url": f"redis+socket://{path}?virtual_host=1",
        "result_backend": f"headrace.celery:backend+redis+socket://{path}?virtual_host=2",
        "headrace_url": server.url,
        "headrace_api_key": key,
    }
    (tmp_path / "conf.json").write_text(json.dumps(conf))
    (tmp_path / "shop.py").write_text(PROJECT)
    command = python("-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO")
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    app = Celery("shop")
    app.conf.update(conf)
    with redis.from_url(f"unix://{path}?db=1") as broker, redis.from_url(f"unix://{path}?db=2") as results:
        broker.flushdb()
        results.flushdb()
        yield Shop(app, broker, results, lambda: start_process(command, environment, cwd=tmp_path))
    # `close` of an app leaves the connections of its result backend to the garbage collector.
    app.backend.result_consumer.stop()
    app.backend.client.connection_pool.disconnect()
    app.close()


def greet(payload: dict[str, Any]) -> tuple[str, ...]:
    """Answer with the last message."""
    return "Hi ", payload["input"]["messages"][-1]["content"]


def test_celerys_calls_and_canvas_work_with_the_users_own_tasks(shop: Shop, worker: ScriptedWorker) -> None:
    shop.serve()
    shout, sort = shop.app.signature("shop.shout"), shop.app.signature("shop.sort")
    note = shop.app.signature("shop.note")
    with worker.serve(greet):
        assert infer.delay(model="tiny", messages=CHAT).get(WAIT_S) == {"text": "Hi Hello", "finish_reason": "stop"}
        stock = {"model": "tiny", "messages": CHAT}
        assert shop.app.send_task("headrace.infer", kwargs=stock).get(WAIT_S)["text"] == "Hi Hello"
        body = {"task": "generate", "model": "tiny", "input": {"messages": CHAT}}
        assert shop.app.send_task("headrace.job", kwargs=body).get(WAIT_S)["text"] == "Hi Hello"
        chain = infer.s(**stock) | infer.s(model="tiny") | shout
        assert chain.delay().get(WAIT_S) == "HI HI HELLO"
        both = [infer.s("a", model="tiny"), infer.s("b", model="tiny")]
        assert [one["text"] for one in group(both).delay().get(WAIT_S)] == ["Hi a", "Hi b"]
        assert chord(both, sort).delay().get(WAIT_S) == ["Hi a", "Hi b"]
        infer.apply_async(("c",), {"model": "tiny"}, link=note)
        wait_for(lambda: shop.notes() == ["{'text': 'Hi c', 'finish_reason': 'stop'}"], shop.notes)


def test_a_refusal_and_a_failed_job_are_the_results_error(
    shop: Shop, worker: ScriptedWorker, api: httpx2.Client
) -> None:
    shop.serve()
    errback = shop.app.signature("shop.note_error")
    unknown = infer.apply_async(kwargs={"model": "nonesuch", "messages": CHAT}, link_error=errback)
    with pytest.raises(JobRefused, match="no model 'nonesuch'") as refused:
        unknown.get(WAIT_S)
    assert refused.value.code == "model_not_found"
    with pytest.raises(JobRefused) as wrong:
        embed.delay(model="tiny", texts=["a"]).get(WAIT_S)
    assert wrong.value.code == "invalid_value"
    failing = infer.apply_async(kwargs={"model": "tiny", "messages": CHAT}, link_error=errback)
    attempt = worker.claim(_job_of(api, failing)["id"])
    worker.fail(attempt, "numerical_error", "the model gave NaN")
    with pytest.raises(JobFailed, match="the model gave NaN") as failed:
        failing.get(WAIT_S)
    assert failed.value.code == "numerical_error"
    expected = [f"{unknown.id}: no model 'nonesuch'; known: tiny", f"{failing.id}: the model gave NaN"]
    wait_for(lambda: shop.notes() == expected, shop.notes)


def _job_of(api: httpx2.Client, result: AsyncResult) -> dict[str, Any]:
    """The job of a task, once it is submitted."""
    path = f"/v1/celery/tasks/{result.id}"
    wait_for(lambda: api.get(path).status_code == 200, "the task is submitted")
    found: dict[str, Any] = api.get(path).json()["job"]
    return found


def test_a_chain_goes_on_from_postgres_after_its_worker_was_killed_and_redis_emptied(
    shop: Shop, worker: ScriptedWorker, api: httpx2.Client
) -> None:
    killed = shop.serve()
    first = infer.s(model="tiny", messages=CHAT).set(task_id="one")
    result = (first | shop.app.signature("shop.shout")).delay()
    found = _job_of(api, result.parent)
    killed.signal(signal.SIGKILL)
    killed.wait_exit()
    shop.broker.flushdb()
    shop.results.flushdb()
    assert result.parent.state == "PENDING"
    attempt = worker.claim(found["id"])
    assert result.parent.state == "STARTED"
    worker.say(attempt, "still here")
    worker.succeed(attempt)
    assert result.parent.get(WAIT_S)["text"] == "still here", "no worker of the app runs: Postgres has the answer"
    shop.serve()
    assert result.get(WAIT_S) == "STILL HERE"
    # A message that is delivered again is the same job with the same answer.
    for _ in range(2):
        shop.app.send_task("headrace.infer", kwargs={"model": "tiny", "messages": CHAT}, task_id="one")
    wait_for(lambda: shop.worker is not None and shop.worker.log().count("[one] succeeded") == 3)
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_a_task_is_in_postgres_once_it_is_sent_and_a_message_while_headrace_is_away(
    shop: Shop, worker: ScriptedWorker, api: httpx2.Client
) -> None:
    first = infer.s(model="tiny", messages=CHAT)
    stored = (first | shop.app.signature("shop.shout")).delay()
    shop.broker.flushdb()
    assert api.get(f"/v1/celery/tasks/{stored.parent.id}").json()["job"]["status"] == "queued"
    shop.app.conf.headrace_url = f"http://127.0.0.1:{free_port()}"
    sent = first.delay()
    assert shop.broker.llen("celery") == 1
    shop.serve()
    with worker.serve(greet):
        assert stored.get(WAIT_S) == "HI HELLO"
        assert sent.get(WAIT_S)["text"] == "Hi Hello"


def test_revoking_cancels_the_job_and_forgetting_deletes_its_contents(
    shop: Shop, worker: ScriptedWorker, api: httpx2.Client
) -> None:
    shop.serve()
    note = shop.app.signature("shop.note")
    revoked = infer.apply_async(kwargs={"model": "tiny", "messages": CHAT}, link=note)
    found = _job_of(api, revoked)
    revoked.revoke()
    wait_for(lambda: api.get(f"/v1/jobs/{found['id']}").json()["status"] == "cancelled", "the job is cancelled")
    wait_for(lambda: revoked.state == "REVOKED", lambda: revoked.state)
    wait_for(lambda: api.get(f"/v1/celery/tasks/{revoked.id}").json()["is_confirmed"], "it comes no more")
    # A cancel through the API is a revoke too.
    cancelled = job.delay(task="generate", model="tiny", input={"messages": CHAT})
    api.post(f"/v1/jobs/{_job_of(api, cancelled)['id']}/cancel").raise_for_status()
    wait_for(lambda: cancelled.state == "REVOKED", lambda: cancelled.state)
    with worker.serve(greet):
        answered = infer.delay(model="tiny", messages=CHAT)
        answered.get(WAIT_S)
    found = _job_of(api, answered)
    wait_for(lambda: api.get(f"/v1/celery/tasks/{answered.id}").json()["is_confirmed"], "the worker stored the result")
    answered.forget()
    assert answered.state == "PENDING", "as of any task without a result"
    assert api.get(f"/v1/jobs/{found['id']}").status_code == 410
    assert shop.notes() == []


def test_a_result_that_is_stored_after_it_was_forgotten_is_deleted(
    shop: Shop, worker: ScriptedWorker, tmp_path: Path
) -> None:
    slow = shop.app.conf["result_backend"].replace("backend+redis+", "backend+shop:Slow+")
    conf = json.loads((tmp_path / "conf.json").read_text())
    (tmp_path / "conf.json").write_text(json.dumps(conf | {"result_backend": slow}))
    process = shop.serve()
    answered = infer.delay(model="tiny", messages=CHAT)
    with worker.serve(greet):
        wait_for(lambda: shop.results.exists("storing"), process.log)
    answered.forget()
    shop.results.set("store", "1")
    wait_for(lambda: f"{answered.id}] succeeded" in process.log(), process.log)
    wait_for(lambda: not shop.results.exists(f"celery-task-meta-{answered.id}"), process.log)
    assert answered.state == "PENDING"


def test_celerys_command_line_shows_headraces_workers_and_starts_none(
    bench: Bench, start_worker: StartWorker, settings: Settings, start_process: StartProcess, tmp_path: Path
) -> None:
    start_worker("--name", "seen")
    environment = {"REDIS_URL": settings.redis_url, "PYTHONPATH": str(ROOT)}

    def celery(*arguments: str) -> str:
        process = start_process(python("-m", "celery", "-A", "headrace.celery", *arguments), environment, cwd=tmp_path)
        process.wait_exit()
        return process.log()

    assert "pong" in celery("inspect", "ping")
    assert "seen" in celery("status")
    assert "worker_enable_remote_control" in celery("report")
    assert celery("worker", "-Q", "smollm2").count("headrace worker --model smollm2") == 1
    dump = start_process(python("-m", "celery", "-A", "headrace.celery", "events", "--dump"), environment, cwd=tmp_path)
    wait_for(lambda: "starting capture" in dump.log(), dump.log)
    assert "OK" in celery("control", "enable_events")
    (job_id,) = bench.submit(1)
    wait_for(lambda: f"task succeeded: generate:fake@1({job_id})" in dump.log(), dump.log)
    dump.signal(signal.SIGKILL)
