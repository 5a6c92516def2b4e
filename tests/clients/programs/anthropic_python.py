"""Anthropic's Python client."""

import asyncio
import json
import time

import anthropic
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from pydantic import BaseModel, Field
from reporting import CAPITAL, CUTTING_URL, LONG_ANSWER, MODEL, TOO_LONG, feature, main, wait_for_state

client = Anthropic(max_retries=0)
QUESTION = [{"role": "user", "content": CAPITAL}]
PARAMS = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}
# The client has no argument for the temperature any more; the API still takes it.
GREEDY = {"extra_body": {"temperature": 0}}
ASKED = PARAMS | GREEDY
TOOL = {
    "name": "get_weather",
    "description": "Return the weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"],
    },
}
WEATHER = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
    "max_tokens": 64,
    "tools": [TOOL],
    **GREEDY,
}
FORCED = WEATHER | {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)


def raises(kind: type[anthropic.APIStatusError], error_type: str, **changes: object) -> None:
    """The call raises the client's own exception with an error of Anthropic's shape."""
    try:
        client.messages.create(**(ASKED | changes))
    except kind as error:
        assert error.body["type"] == "error", error.body
        assert error.body["error"]["type"] == error_type, error.body
        assert error.request_id == error.body["request_id"]
    else:
        raise AssertionError(f"no {kind.__name__}")


@feature("messages")
def messages() -> None:
    whole = client.messages.create(**ASKED)
    assert "Paris" in whole.content[0].text
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION).input_tokens
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counted
    loud = client.messages.create(**ASKED, system=[{"type": "text", "text": "Answer with one word."}])
    assert loud.content


@feature("messages, streamed")
def messages_streamed() -> None:
    whole = client.messages.create(**ASKED)
    kinds = [event.type for event in client.messages.create(**ASKED, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


@feature("messages, why an answer ends")
def why_an_answer_ends() -> None:
    cut = client.messages.create(**ASKED | {"max_tokens": 2})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
    whole = client.messages.create(**ASKED)
    word = whole.content[0].text.split()[1]
    stopped = client.messages.create(**ASKED, stop_sequences=["never said", word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert word not in "".join(block.text for block in stopped.content)
    with client.messages.stream(**ASKED, stop_sequences=[word]) as stream:
        assert stream.get_final_message().stop_sequence == word


@feature("messages, tools")
def tools() -> None:
    first = client.messages.create(**FORCED)
    (use,) = first.content
    assert (first.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "get_weather")
    assert set(use.input) == {"city"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "It is cold."}]}
    turns = [*FORCED["messages"], first.to_param(), {"role": "user", "content": [result]}]
    again = client.messages.create(**WEATHER | {"messages": turns, "tool_choice": {"type": "none"}})
    assert again.content[0].type == "text"


@feature("messages, tools streamed")
def tools_streamed() -> None:
    with client.messages.stream(**FORCED) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        (use,) = stream.get_final_message().content
    assert len(parts) > 1
    assert json.loads("".join(parts)) == use.input


@feature("messages, tool runner")
def tool_runner() -> None:
    asked = []

    @beta_tool
    def get_weather(city: str) -> str:
        """Return the weather in a city.

        Args:
            city: its name
        """
        asked.append(city)
        return "It rains."

    changes = {"tools": [get_weather], "max_iterations": 3}
    turns = list(client.beta.messages.tool_runner(**FORCED | {"max_tokens": 128} | changes))
    # The client sends all messages again once it is told that no thread is held.
    assert [len(turn.content) for turn in turns] == [1, 1, 1]
    assert len(asked) >= 2
    sizes = [turn.usage.input_tokens + turn.usage.cache_read_input_tokens for turn in turns]
    assert sizes[0] < sizes[1] < sizes[2], sizes


@feature("messages, structured output")
def structured_output() -> None:
    parsed = client.messages.parse(**ASKED | {"max_tokens": 64}, output_format=City)
    assert isinstance(parsed.parsed_output, City)


@feature("messages, async and concurrent")
async def concurrent() -> None:
    async with AsyncAnthropic(max_retries=0) as many:
        answers = await asyncio.gather(*(many.messages.create(**ASKED) for _ in range(8)))
    assert len({answer.id for answer in answers}) == 8
    assert len({answer.content[0].text for answer in answers}) == 1


@feature("messages, leaving a stream cancels")
def leaving() -> None:
    long = {"model": MODEL, "messages": [{"role": "user", "content": LONG_ANSWER}], "max_tokens": 2000}
    with client.messages.create(**long, stream=True) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                break
        job_id = stream.response.headers["x-job-id"]
    wait_for_state(job_id, "cancelled")


@feature("messages, retry of a lost answer")
def retry() -> None:
    patient = Anthropic(base_url=CUTTING_URL.removesuffix("/v1"), max_retries=2)
    asked = ASKED | {"messages": [{"role": "user", "content": f"{CAPITAL} It is {time.time()}."}]}
    raw = patient.messages.with_raw_response.create(**asked)
    assert raw.headers["idempotent-replayed"] == "true"
    assert raw.parse().content


@feature("messages, batches")
def batches() -> None:
    asked = [{"custom_id": f"r{n}", "params": PARAMS} for n in range(3)]
    asked.append({"custom_id": "bad", "params": PARAMS | {"model": "nobody"}})
    batch = client.messages.batches.create(requests=asked)
    deadline = time.monotonic() + 60
    while (found := client.messages.batches.retrieve(batch.id)).processing_status != "ended":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    kinds = {line.custom_id: line.result.type for line in client.messages.batches.results(batch.id)}
    assert kinds == {"r0": "succeeded", "r1": "succeeded", "r2": "succeeded", "bad": "errored"}
    assert (found.request_counts.succeeded, found.request_counts.errored) == (3, 1)
    assert batch.id in {each.id for each in client.messages.batches.list()}
    assert client.messages.batches.delete(batch.id).id == batch.id


@feature("messages, batches cancelled")
def batches_cancelled() -> None:
    long = {"model": MODEL, "messages": [{"role": "user", "content": LONG_ANSWER}], "max_tokens": 2000}
    batch = client.messages.batches.create(requests=[{"custom_id": "a", "params": long}])
    assert client.messages.batches.cancel(batch.id).processing_status in ("canceling", "ended")


@feature("messages, models")
def models() -> None:
    assert MODEL in {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).type == "model"


@feature("messages, errors")
def errors() -> None:
    raises(anthropic.NotFoundError, "not_found_error", model="nobody")
    too_long = [{"role": "user", "content": TOO_LONG}]
    raises(anthropic.BadRequestError, "invalid_request_error", messages=too_long)
    raises(anthropic.BadRequestError, "invalid_request_error", thinking={"type": "enabled", "budget_tokens": 1024})
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    raises(anthropic.BadRequestError, "invalid_request_error", messages=[{"role": "user", "content": [image]}])
    try:
        Anthropic(api_key="hr_nobody_nothing", max_retries=0).messages.create(**ASKED)
    except anthropic.AuthenticationError as error:
        assert error.body["error"]["type"] == "authentication_error"
    else:
        raise AssertionError("a bad key is accepted")


main(asyncio.run)
