"""The main job on real parts: a local stack on the real model, the official client, the README's blocks, and faults."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from benchmarks import trial
from tests import readme
from tests.cases import full
from tests.e2e.running import Running, running_smollm2
from tests.processes import wait_for
from tests.readme import block


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    # The reference is float32.
    with running_smollm2({"HEADRACE_LEASE_S": "5", "HEADRACE_SWEEP_S": "0.5", "HEADRACE_DTYPE": "float32"}) as running:
        yield running


QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_official_client_gets_the_same_answer_whole_and_streamed(running: Running) -> None:
    asked: dict[str, Any] = {"model": "smollm2", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = running.client.chat.completions.create(**asked)
    streamed = running.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert text == whole.choices[0].message.content
    first, second = whole.usage, chunks[-1].usage
    assert first is not None
    assert second is not None
    assert (second.prompt_tokens, second.completion_tokens) == (first.prompt_tokens, first.completion_tokens)
    assert second.prompt_tokens_details is not None
    assert 0 < (second.prompt_tokens_details.cached_tokens or 0) < second.prompt_tokens
    assert whole.model == "smollm2@1"


RIVER = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "length_km": {"type": "integer", "minimum": 1}},
    "required": ["name", "length_km"],
    "additionalProperties": False,
}


@pytest.mark.full
def test_an_answer_follows_its_form_and_tells_how_likely_it_was(running: Running) -> None:
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Name a long river, größer als 1000 km."}],
        "max_tokens": 80,
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "river", "schema": RIVER}},
        "logprobs": True,
        "top_logprobs": 2,
    }
    (choice,) = running.client.chat.completions.create(**asked).choices
    chunks = list(running.client.chat.completions.create(**asked, stream=True))
    assert choice.finish_reason == "stop"
    assert jsonschema_rs.is_valid(RIVER, json.loads(choice.message.content or ""))
    streamed = [
        one for chunk in chunks for each in chunk.choices if each.logprobs for one in each.logprobs.content or ()
    ]
    assert choice.logprobs is not None
    assert [one.token for one in streamed] == [one.token for one in choice.logprobs.content or ()]
    assert b"".join(bytes(one.bytes or ()) for one in streamed).decode() == choice.message.content
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in streamed)
    text = running.client.completions.create(
        model="smollm2", prompt="The capital of France is", extra_body={"structured_outputs": {"regex": " [A-Z][a-z]+"}}
    )
    assert re.fullmatch(" [A-Z][a-z]+", text.choices[0].text)


def _city_tool(name: str) -> Any:
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 16}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": f"{name} of a city", "parameters": city}}


@pytest.mark.full
def test_a_prompt_is_scored_as_lm_eval_asks_for_it(running: Running) -> None:
    def scored(prompt: str, max_tokens: int) -> Any:
        asked: dict[str, Any] = {"model": "smollm2", "prompt": [prompt], "temperature": 0, "seed": 1}
        return running.client.completions.create(**asked, max_tokens=max_tokens, logprobs=1, echo=True)

    likely, unlikely = (scored(f"The capital of France is {city}.", 1) for city in ("Paris", "Oslo"))
    found = likely.choices[0]
    assert found.text.startswith("The capital of France is Paris.")
    assert "".join(found.logprobs.tokens) == found.text
    assert len(found.logprobs.tokens) == likely.usage.prompt_tokens + 1
    assert (found.logprobs.token_logprobs[0], found.logprobs.top_logprobs[0]) == (None, None)
    sums = [sum(one.choices[0].logprobs.token_logprobs[1:-1]) for one in (likely, unlikely)]
    assert sums[0] > sums[1] + 1
    again = scored("The capital of France is Paris.", 0)
    assert (again.choices[0].text, again.usage.completion_tokens) == ("The capital of France is Paris.", 0)
    assert again.choices[0].logprobs.token_logprobs == found.logprobs.token_logprobs[:-1]


@pytest.mark.full
def test_a_forced_call_validates_and_its_result_is_answered(running: Running) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    tools = [_city_tool("get_weather"), _city_tool("get_population")]
    asked: dict[str, Any] = {"model": "smollm2", "messages": question, "tools": tools, "temperature": 0}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        forced = asked | {"tool_choice": choice, "max_tokens": 120, "parallel_tool_calls": False}
        whole = running.client.chat.completions.create(**forced).choices[0]
        calls = whole.message.tool_calls or []
        assert (whole.finish_reason, whole.message.content, len(calls) > 0) == ("tool_calls", None, True)
        for call in calls:
            assert set(json.loads(call.function.arguments)) == {"city"}
            assert call.function.name in (
                {"get_weather", "get_population"} if choice == "required" else {"get_weather"}
            )
        with running.client.chat.completions.create(**forced, stream=True) as stream:
            told = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
        arguments = "".join(call.function.arguments or "" for call in told if call.function)
        assert arguments == "".join(call.function.arguments for call in calls)
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 °C"} for call in calls]
    answer = running.client.chat.completions.create(
        **asked | {"messages": [*question, whole.message, *results], "tool_choice": "none", "max_tokens": 40}
    )
    assert "sunny" in (answer.choices[0].message.content or "")


# Faults in every run are with the fake model (tests/reliability, make chaos): there it takes seconds.
@pytest.mark.full
@pytest.mark.parametrize(("fault", "jobs", "check"), [("none", 8, 8), ("kill-worker", 32, 0), ("flush-redis", 32, 0)])
def test_mixed_jobs_each_end_once_whatever_breaks(running: Running, fault: str, jobs: int, check: int) -> None:
    args = argparse.Namespace(jobs=jobs, concurrency=16, fault=fault, check=check)
    report = trial.run(running.stack, running.record, running.home, args)
    assert report.broken == []
    assert report.succeeded == jobs
    assert report.duplicate_terminal == 0
    if check:
        assert report.greedy_equal == f"{check} of {check}"


def test_flower_shows_engine_statistics_and_tasks_by_model_version(running: Running) -> None:
    running.client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]

    def live() -> list[dict[str, Any]]:
        """Return the pools of the workers that answered Flower within its second."""
        workers = running.flower("/api/workers?refresh=1").json()
        return [info["stats"]["pool"] for info in workers.values() if info.get("stats")]

    pools = wait_for(live, "the worker answers")
    assert any(pool["model version"] == "smollm2@1" and pool["engine steps"] > 0 for pool in pools)

    def names() -> set[str]:
        """Ask once more; return the names of the tasks that Flower knows from their beginning."""
        # Flower enables events every five seconds; before that a worker sends none, and then perhaps only an end.
        running.client.chat.completions.create(model="smollm2", messages=QUESTION, max_tokens=4)  # type: ignore[arg-type]
        return {task["name"] for task in running.flower("/api/tasks").json().values() if task["name"]}

    assert wait_for(names, "Flower shows a task") == {"generate:smollm2@1"}


def test_flower_is_closed_without_its_password(running: Running) -> None:
    for path in ("/workers", "/tasks", "/api/tasks"):
        assert httpx2.get(running.stack.flower_url + path, timeout=30).status_code == 401


def test_metrics_count_what_was_accepted(running: Running) -> None:
    text = httpx2.get(f"{running.stack.api_url}/metrics", timeout=60).text
    found = re.search(r'headrace_\w*accepted\w*\{[^}]*model="smollm2"[^}]*\} (\d+)', text)
    assert found is not None, text[:2000]
    assert int(found[1]) > 0


def here(text: str, running: Running) -> str:
    """A README block with this stack's address and key."""
    return readme.here(text, running.stack.api_url, running.stack.api_key)


def test_the_openai_program_prints_an_answer(running: Running) -> None:
    program = here(block("python", "from openai import OpenAI"), running)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.full
def test_the_curl_chat_gets_an_answer(running: Running) -> None:
    command = here(block("sh", "v1/chat/completions"), running)
    key = f"export HEADRACE_API_KEY={running.stack.api_key}\n"
    done = subprocess.run(["sh", "-c", key + command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"], done.stderr


@pytest.mark.parametrize("verb", ["/events", "/cancel", *full("?wait=30")])
def test_the_curl_commands_work(running: Running, verb: str) -> None:
    commands = here(block("sh", "curl -s localhost:8000/v1/jobs -H"), running)
    submit = commands[: commands.index("# 202")]
    answer = subprocess.run(["sh", "-c", submit], capture_output=True, text=True, timeout=60)
    job = json.loads(answer.stdout)
    assert job["status"] in {"queued", "running"}
    (line,) = [line for line in commands.splitlines() if verb in line]
    if verb == "?wait=30":
        # On a busy machine one such call may not be long enough.
        headers = {"Authorization": f"Bearer {running.stack.api_key}"}
        asked = f"{running.stack.api_url}/v1/jobs/{job['id']}?wait=30"
        wait_for(lambda: httpx2.get(asked, headers=headers, timeout=60).json()["completed_at"], "it ends", 180)
    key = f"export HEADRACE_API_KEY={running.stack.api_key}\n"
    follow = key + line.replace("job_…", job["id"])
    result = subprocess.run(["sh", "-c", follow], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    expected = {"?wait=30": '"succeeded"', "/events": "event: job.succeeded", "/cancel": job["id"]}
    assert expected[verb] in result.stdout
