"""Tool calling, asked by the official client of models that write calls in each of the styles."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any

import httpx2
import pytest
import redis
import tokenizers
from openai import OpenAI
from tokenizers import decoders, models, pre_tokenizers

from headrace.prompts.tool_calls import call_id
from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from headrace.store.registry.models import register_version
from tests.producer_api.calling import parse
from tests.producer_api.conftest import CONTEXT_WINDOW
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.prompts.tool_templates import HERMES, LLAMA3

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "now", "description": "The time"}}
TOOLS = [WEATHER, CLOCK]
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
QUESTION: Any = [{"role": "user", "content": "Is it warm in Oslo?"}]

# A model's output in each style; the fake model has a template without tools.
SAID = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Oslo"}}',
    "plain": '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
}


def template_files(template: str, marks: Sequence[str] = ()) -> dict[str, bytes]:
    """The files of a model with this chat template. ``marks`` are tokens of their own."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([tokenizers.AddedToken(mark, special=False, normalized=False) for mark in marks])
    return {
        "tokenizer.json": backend.to_str().encode(),
        "chat_template.jinja": template.encode(),
        "generation_config.json": json.dumps({"eos_token_id": len(letters)}).encode(),
    }


def register_styles(db: Database, redis_client: redis.Redis) -> dict[str, ScriptedWorker]:
    """Register a model of each style; return a worker for each, by its name."""
    found = {}
    for number, (name, template) in enumerate({"hermes": HERMES, "llama3": LLAMA3, "plain": None}.items()):
        register_version(
            db,
            model=name,
            runner="fake" if template is None else "torch",
            source=name,
            digest=str(number) * 64,
            dtype="float32",
            context_window=CONTEXT_WINDOW * 8,
            files={} if template is None else template_files(template),
            actor="tests",
        )
        found[name] = ScriptedWorker(db, redis_client, f"{name}@1")
    return found


@pytest.fixture
def workers(db: Database, redis_client: redis.Redis) -> dict[str, ScriptedWorker]:
    return register_styles(db, redis_client)


@pytest.fixture
def worker(workers: dict[str, ScriptedWorker]) -> ScriptedWorker:
    return workers["plain"]


@pytest.fixture
def openai(openai: OpenAI, workers: dict[str, ScriptedWorker]) -> Iterator[OpenAI]:
    """The client, once every model is there."""
    return openai


def _letters(text: str) -> list[str]:
    return [text[start : start + 3] for start in range(0, len(text), 3)]


@contextmanager
def agents(workers: dict[str, ScriptedWorker], before: str = "") -> Iterator[None]:
    """Models that call the weather, and answer when they have its result."""

    def answer(name: str) -> Any:
        def say(payload: dict[str, Any]) -> Sequence[str]:
            last = payload["input"]["messages"][-1]
            return ["It is ", last["content"]] if last["role"] == "tool" else _letters(f"{before}{SAID[name]}")

        return say

    with ExitStack() as stack:
        for name, worker in workers.items():
            stack.enter_context(worker.serve(answer(name)))
        yield


def test_a_round_from_question_to_answer(
    openai: OpenAI, workers: dict[str, ScriptedWorker], api: httpx2.Client, subtests: pytest.Subtests
) -> None:
    with agents(workers):
        for model in workers:
            with subtests.test(model):
                raw = openai.chat.completions.with_raw_response.create(model=model, messages=QUESTION, tools=TOOLS)
                choice = raw.parse().choices[0]
                assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
                (call,) = choice.message.tool_calls or []
                assert call.type == "function"
                assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
                job_id = raw.headers["x-job-id"]
                assert call.id == call_id(job_id, 0)
                output = api.get(f"/v1/jobs/{job_id}").json()["output"]
                assert output["tool_calls"] == [call.model_dump(exclude_unset=True)]
                assert (output["finish_reason"], output["text"]) == ("tool_calls", SAID[model])
                result: Any = {"role": "tool", "tool_call_id": call.id, "content": "cold"}
                # As the client's `parse` leaves a message, which programs send back.
                said: Any = choice.message.model_dump()
                said["tool_calls"][0]["function"]["parsed_arguments"] = {"city": "Oslo"}
                again = openai.chat.completions.create(model=model, messages=[*QUESTION, said, result], tools=TOOLS)
                assert again.choices[0].message.content == "It is cold"
                assert (again.choices[0].finish_reason, again.choices[0].message.tool_calls) == ("stop", None)


def test_a_model_reads_the_schema_of_a_tool_as_it_was_sent(openai: OpenAI, workers: dict[str, ScriptedWorker]) -> None:
    read: list[str] = []

    def say(payload: dict[str, Any]) -> Sequence[str]:
        read.append(json.dumps(payload["input"]["tools"][0]["function"]["parameters"]))
        return ["It is"]

    with workers["hermes"].serve(say):
        openai.chat.completions.create(model="hermes", messages=QUESTION, tools=TOOLS)
    assert read == [json.dumps(WEATHER["function"]["parameters"])]


def test_a_streamed_call(openai: OpenAI, workers: dict[str, ScriptedWorker], subtests: pytest.Subtests) -> None:
    with agents(workers, "I look.\n"):
        for model in workers:
            with subtests.test(model):
                with openai.chat.completions.with_raw_response.create(
                    model=model, messages=QUESTION, tools=TOOLS, stream=True
                ).parse() as stream:
                    chunks = list(stream)
                deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
                assert "".join(delta.content or "" for delta in deltas) == "I look."
                calls = [call for delta in deltas for call in delta.tool_calls or []]
                assert {call.index for call in calls} == {0}
                first, *rest = calls
                assert (first.type, first.function and first.function.name) == ("function", "get_weather")
                assert first.id == call_id(f"job_{chunks[0].id.removeprefix('chatcmpl-')}", 0)
                assert {(call.id, call.type, call.function and call.function.name) for call in rest} == {(None,) * 3}
                assert len(rest) > 2, "arguments come as they are written"
                arguments = "".join(call.function.arguments or "" for call in calls if call.function)
                assert json.loads(arguments) == {"city": "Oslo"}
                assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"


def test_the_clients_own_helper_puts_the_stream_together(openai: OpenAI, workers: dict[str, ScriptedWorker]) -> None:
    with (
        agents(workers),
        openai.chat.completions.stream(model="hermes", messages=QUESTION, tools=TOOLS) as stream,
    ):
        message = stream.get_final_completion().choices[0].message
    assert not message.content
    assert [call.function.arguments for call in message.tool_calls or []] == ['{"city": "Oslo"}']


def test_content_streams_at_once_and_what_may_be_a_call_is_held(
    openai: OpenAI, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    with openai.chat.completions.create(model="hermes", messages=QUESTION, tools=TOOLS, stream=True) as stream:
        chunks = (chunk.choices[0].delta for chunk in stream)
        worker = workers["hermes"]
        attempt = worker.claim(jobs.list_jobs(db, tenant)[0].id)
        worker.say(attempt, "Let me see.")
        assert next(chunks).content == "Let me see."
        worker.say(attempt, " <tool", '_call>{"name": "now", "argume', 'nts": {')
        begun = next(chunks).tool_calls
        assert begun is not None
        assert begun[0].function is not None
        assert (begun[0].function.name, begun[0].function.arguments) == ("now", "")
        worker.succeed(attempt, "length")
        assert [delta.tool_calls[0].function.arguments for delta in chunks if delta.tool_calls] == ["{"]  # type: ignore[union-attr]


def test_another_attempt_says_the_same_call_once(
    openai: OpenAI, workers: dict[str, ScriptedWorker], db: Database, tenant: str
) -> None:
    worker, said = workers["plain"], _letters(SAID["plain"])
    with openai.chat.completions.create(model="plain", messages=QUESTION, tools=TOOLS, stream=True) as stream:
        chunks = (chunk.choices[0].delta for chunk in stream)
        attempt = worker.claim(jobs.list_jobs(db, tenant)[0].id)
        worker.say(attempt, *said[:-4])
        heard = [next(chunks).tool_calls for _ in range(3)]
        worker.hand_back(attempt)
        second = worker.claim(attempt.claim.job_id)
        worker.say(second, *said)
        worker.succeed(second)
        heard += [delta.tool_calls for delta in chunks]
    calls = [call for told in heard for call in told or ()]
    assert [call.id for call in calls if call.id] == [call_id(attempt.claim.job_id, 0)]
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"city": "Oslo"}'


TWICE = "\n".join([SAID["plain"], '{"name": "now", "arguments": {}}'])


def test_several_calls_or_one(openai: OpenAI, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: _letters(TWICE)):
        for is_parallel, names in [(True, ["get_weather", "now"]), (False, ["get_weather"])]:
            asked: Any = {"model": "plain", "messages": QUESTION, "tools": TOOLS, "parallel_tool_calls": is_parallel}
            calls = openai.chat.completions.create(**asked).choices[0].message.tool_calls or []
            assert [call.function.name for call in calls] == names
            assert len({call.id for call in calls}) == len(calls)
            with openai.chat.completions.create(**asked, stream=True) as stream:
                told = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
            assert [call.function.name for call in told if call.function and call.function.name] == names


def test_a_text_that_is_no_call_is_content(openai: OpenAI, worker: ScriptedWorker) -> None:
    unknown = SAID["plain"].replace("get_weather", "get_horses")
    for text, choice in [(unknown, "auto"), (SAID["plain"], "none"), (' {"name": "now', "auto")]:
        with worker.serve(lambda _, text=text: _letters(text)):
            asked: Any = {"model": "plain", "messages": QUESTION, "tools": TOOLS, "tool_choice": choice}
            whole = openai.chat.completions.create(**asked).choices[0]
            with openai.chat.completions.create(**asked, stream=True) as stream:
                streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert (whole.message.content, whole.message.tool_calls, whole.finish_reason) == (text, None, "stop")
        assert streamed == text


def test_the_choice_reaches_the_worker_as_a_grammar(
    api: httpx2.Client, worker: ScriptedWorker, db: Database, tenant: str
) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    for choice, is_held in [(None, False), ("none", False), ("auto", False), ("required", True), (named, True)]:
        asked = {"model": "plain", "input": {"messages": QUESTION, "tools": TOOLS, "tool_choice": choice}}
        response = api.post("/v1/jobs", json=asked)
        assert response.status_code == 202, response.text
        payload = jobs.get(db, tenant, response.json()["id"]).payload
        grammar = payload["sampling"].get("grammar")
        assert (grammar is not None, payload.get("tool_style")) == (is_held, None if choice == "none" else "json")
        assert grammar is None or (grammar["kind"], "get_weather" in grammar["text"]) == ("lark", choice != named)


FORM: Any = {"type": "json_schema", "json_schema": {"name": "report", "schema": {"type": "object"}}}
REPORT = '{"name":"get_weather","arguments":{},"parameters":{}}'


def test_a_form_of_the_answer_goes_together_with_tools_in_every_style(
    openai: OpenAI, workers: dict[str, ScriptedWorker], subtests: pytest.Subtests
) -> None:
    for model, worker in workers.items():
        for text, is_call in ((SAID[model], True), (REPORT, False)):
            with subtests.test(model, is_call=is_call), worker.serve(lambda _, text=text: _letters(text)):
                asked: Any = {"model": model, "messages": QUESTION, "tools": TOOLS, "response_format": FORM}
                whole = openai.chat.completions.create(**asked).choices[0]
                with openai.chat.completions.create(**asked, stream=True) as stream:
                    deltas = [chunk.choices[0].delta for chunk in stream]
                flat: Any = {"format": {"type": "json_schema", "name": "report", "schema": {"type": "object"}}}
                (item,) = openai.responses.create(model=model, input="?", tools=FLAT, text=flat).output
                names = [call.function.name for call in whole.message.tool_calls or []]
                content = "".join(delta.content or "" for delta in deltas)
                streamed = [call.function.name for delta in deltas for call in delta.tool_calls or [] if call.id]
                expected = (["get_weather"], "") if is_call else ([], REPORT)
                assert (names, whole.message.content or "") == (streamed, content) == expected
                assert item.type == ("function_call" if is_call else "message")


def test_a_call_that_the_token_limit_cuts_off_is_no_content(
    openai: OpenAI, workers: dict[str, ScriptedWorker], db: Database, tenant: str, subtests: pytest.Subtests
) -> None:
    for (model, worker), choice in product(workers.items(), ("auto", "required")):
        beginning = SAID[model][: SAID[model].index("_weather")]
        asked: Any = {"model": model, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice}
        with subtests.test(model, choice=choice), openai.chat.completions.create(**asked, stream=True) as stream:
            attempt = worker.claim(jobs.list_jobs(db, tenant)[0].id)
            worker.say(attempt, *_letters(beginning))
            worker.succeed(attempt, "length")
            chunks = list(stream)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
            assert chunks[-1].choices[0].finish_reason == "length"
            output = jobs.list_jobs(db, tenant)[0].output or {}
            assert (output["text"], output.get("content", ""), output.get("tool_calls")) == (beginning, "", None)


def test_a_native_stream_has_the_text_and_its_end_the_calls(api: httpx2.Client, worker: ScriptedWorker) -> None:
    with worker.serve(lambda _: _letters(SAID["plain"])):
        asked = {"model": "plain", "input": {"messages": QUESTION, "tools": TOOLS}}
        job = api.post("/v1/jobs", json=asked, headers={"Prefer": "wait=20"}).json()
    events = parse(api.get(f"/v1/jobs/{job['id']}/events").content)
    assert "".join(each.data["text"] for each in events if each.name == "job.delta") == SAID["plain"]
    assert events[-1].data["output"]["tool_calls"] == job["output"]["tool_calls"]
    assert job["output"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_a_round_of_responses_whole_and_streamed(openai: OpenAI, workers: dict[str, ScriptedWorker]) -> None:
    with agents(workers, "I look.\n"):
        first = openai.responses.create(model="plain", input="Is it warm in Oslo?", tools=FLAT)
        (said, call) = first.output
        assert (said.type, first.output_text, first.status) == ("message", "I look.", "completed")
        assert call.type == "function_call"
        assert (call.name, json.loads(call.arguments), call.status) == ("get_weather", {"city": "Oslo"}, "completed")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "cold"}
        again = openai.responses.create(model="plain", input=[result], previous_response_id=first.id, tools=FLAT)
        assert again.output_text == "It is cold"
        with openai.responses.create(model="plain", input="And now?", tools=FLAT, stream=True) as stream:
            events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert (len(parts) > 2, "".join(parts)) == (True, call.arguments)
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert (done.to_dict()["name"], done.arguments) == ("get_weather", call.arguments)
    assert events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["message", "function_call"]
