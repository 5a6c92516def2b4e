"""The response cache as a caller sees it: header, job, stream, and what never shares an answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from headrace.features.policy import policies
from headrace.features.response_cache import sharers
from headrace.features.retention.purge import Scope, purge_step
from headrace.store.db.database import Database
from headrace.store.registry.models import ModelVersion
from headrace.store.settings import Settings
from tests.processes import wait_for
from tests.producer_api.calling import num_jobs, parse, state_of, streaming
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer, serving

GREEDY = {"model": "tiny", "input": {"prompt": "hello"}, "sampling": {"temperature": 0, "max_tokens": 8}}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture
def server(settings: Settings, model: ModelVersion) -> Iterator[ApiServer]:
    with serving(settings.model_copy(update={"response_cache": "on", "digest_keys": ("k" * 32,)})) as server:
        yield server


def ask(api: httpx2.Client, body: dict[str, Any] = GREEDY, wish: str | None = None) -> tuple[str, str | None]:
    """Submit a job; return its id and what the cache did."""
    headers = {} if wish is None else {"Headrace-Cache": wish}
    response = api.post("/v1/jobs", json=body, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()["id"], response.headers.get("x-cache")


def say(worker: ScriptedWorker, job_id: str, *texts: str) -> None:
    attempt = worker.claim(job_id)
    worker.say(attempt, *texts)
    worker.succeed(attempt)


@pytest.mark.uses("console")
def test_a_hit_is_a_job_that_has_ended(api: httpx2.Client, worker: ScriptedWorker) -> None:
    source, result = ask(api)
    assert result == "miss"
    say(worker, source, "Hel", "lo")
    hit, result = ask(api)
    assert result == "hit"
    job, first = api.get(f"/v1/jobs/{hit}").json(), api.get(f"/v1/jobs/{source}").json()
    assert (job["status"], job["cache"], first["cache"]) == ("succeeded", "hit", "miss")
    assert job["output"] == first["output"]
    assert (job["usage"]["cached_tokens"], job["attempt"], job["queue"]["name"]) == (5, 0, "tiny@1")
    events = parse(api.get(f"/v1/jobs/{hit}/events").content)
    assert "".join(event.data["text"] for event in events if event.name == "job.delta") == "Hello"
    assert events[-1].id == job["last_event_id"]
    metrics = api.get("/metrics").text
    assert 'headrace_cache_results_total{result="hit"} 1.0' in metrics
    assert api.get("/v1/live").json()["state"]["cache_hit_rate"] == 0.5


def test_chats_have_hits_whole_and_streamed(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: ["Hi ", "you"]):
        whole = [api.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
        streamed = api.post("/v1/chat/completions", json=CHAT | {"stream": True})
    assert [answer.headers["x-cache"] for answer in (*whole, streamed)] == ["miss", "hit", "hit"]
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in whole}) == 1
    assert streamed.text.count('"content":"Hi "') == streamed.text.count('"content":"you"') == 1


def test_a_sharer_streams_live_and_resumes_anywhere(api: httpx2.Client, worker: ScriptedWorker, db: Database) -> None:
    source, _ = ask(api)
    sharer, result = ask(api)
    assert (result, api.get(f"/v1/jobs/{sharer}").json()["queue"]["position"]) == ("shared", None)
    with streaming(api, sharer) as stream:
        attempt = worker.claim(source)
        worker.say(attempt, "a", "b")
        seen = [stream.next() for _ in range(4)]
        with streaming(api, sharer, last_event_id="1-1") as later:
            assert (later.next().id, state_of(db, sharer)) == ("1-2", "queued")
            worker.say(attempt, "c")
            worker.succeed(attempt)
            rest = parse(later.rest())
        whole = parse(stream.rest())
    assert [event.name for event in seen] == ["job.queued", "job.started", "job.delta", "job.delta"]
    assert [event.id for event in whole] == ["0-0", "1-0", "1-1", "1-2", "1-3", "1-4"]
    assert [event.id for event in rest] == ["1-2", "1-3", "1-4"]
    assert [event.id for event in parse(api.get(f"/v1/jobs/{sharer}/events").content)] == [e.id for e in whole]


def test_a_sharer_whose_source_is_cancelled_starts_anew(
    api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    source, _ = ask(api)
    heir, _ = ask(api)
    with streaming(api, heir) as stream:
        attempt = worker.claim(source)
        worker.say(attempt, "a", "b")
        for _ in range(4):
            stream.next()
        api.post(f"/v1/jobs/{source}/cancel").raise_for_status()
        worker.obey_cancel(attempt)
        assert sharers.sweep(db, 10).promoted == (heir,)
        say(worker, heir, "x", "y")
        events = parse(stream.rest())
    (restart,) = [event for event in events if event.name == "job.restarted"]
    assert (restart.id, restart.data["kept"]) == ("2-0", 0)
    assert [event.data["text"] for event in events if event.name == "job.delta"][-2:] == ["x", "y"]


def test_a_waiting_request_gets_the_answer_of_its_source(
    api: httpx2.Client, worker: ScriptedWorker, db: Database
) -> None:
    source, _ = ask(api)
    waited = api.build_request("POST", "/v1/jobs", json=GREEDY, headers={"Prefer": "wait=30"})
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(api.send, waited)
        wait_for(lambda: num_jobs(db) == 2, "the second request was accepted")
        say(worker, source, "Hello")
        answer = sent.result(60)
    assert (answer.status_code, answer.headers["x-cache"]) == (200, "shared")
    assert answer.json()["output"]["text"] == "Hello"


def test_only_equal_requests_of_one_tenant_with_one_answer_share(
    api: httpx2.Client, make_client: Any, other_key: str, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    say(worker, ask(api)[0], "Hello")
    sampling = GREEDY["sampling"]
    assert isinstance(sampling, dict)

    def result(
        client: httpx2.Client = api, changes: dict[str, Any] | None = None, wish: str | None = None
    ) -> str | None:
        return ask(client, GREEDY | (changes or {}), wish)[1]

    assert result() == "hit"
    assert result(changes={"metadata": {"a": "b"}, "priority": 1, "user": "u"}) == "hit"
    assert result(make_client(other_key)) == "miss"
    assert result(changes={"input": {"prompt": "hello "}}) == "miss"
    assert result(changes={"sampling": sampling | {"max_tokens": 7}}) == "miss"
    assert result(changes={"sampling": sampling | {"temperature": 1, "seed": 1}}) == "miss"
    assert result(changes={"sampling": sampling | {"temperature": 1}}) == "bypass"
    assert result(wish="bypass") == "bypass"
    policies.put(db, tenant, "", {"rules": []}, "tests")
    wait_for(lambda: result() == "miss", "the policy is in force")


def test_a_purge_of_the_tenant_leaves_no_answer(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    say(worker, ask(api)[0], "Hello")
    assert purge_step(db, "jobs", Scope(tenant), limit=10).num == 1
    assert ask(api)[1] == "miss"


@pytest.mark.parametrize(("mode", "expected"), [("off", (None, None)), ("asked", (None, "miss"))])
def test_the_setting_decides(
    settings: Settings, model: ModelVersion, key: str, mode: str, expected: tuple[str | None, str | None]
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    changed = settings.model_copy(update={"response_cache": mode})
    with serving(changed) as server, httpx2.Client(base_url=server.url, headers=headers, timeout=60) as api:
        assert (ask(api)[1], ask(api, wish="use")[1]) == expected
        refused = api.post("/v1/jobs", json=GREEDY, headers={"Headrace-Cache": "please"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Headrace-Cache")


@pytest.mark.uses("templates")
def test_a_prompt_template_is_known_by_what_it_makes(api: httpx2.Client, worker: ScriptedWorker) -> None:
    template = {"name": "say", "text": "say {{ word }}", "variables": ["word"]}
    assert api.post("/v1/prompts", json=template).status_code == 201

    def with_word(word: str) -> str | None:
        return ask(api, GREEDY | {"input": {"template": {"id": "say", "variables": {"word": word}}}})[1]

    source, result = ask(api, GREEDY | {"input": {"template": {"id": "say", "variables": {"word": "a"}}}})
    assert result == "miss"
    say(worker, source, "b")
    assert (with_word("a"), with_word("b")) == ("hit", "miss")
    changed = {"text": "{{ word }}!", "variables": ["word"]}
    assert api.post("/v1/prompts/say/versions", json=changed).status_code == 201
    assert with_word("a") == "miss"
