"""The official Python client on what outlives a connection: responses, files and batches."""

import asyncio
import hashlib
import json
import time

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from reporting import CAPITAL, CUTTING_URL, LONG_ANSWER, MODEL, TOO_LONG, feature, main

client = OpenAI(max_retries=0)
ASKED = {"model": MODEL, "input": CAPITAL, "temperature": 0, "max_output_tokens": 24}
LONG = {"model": MODEL, "input": LONG_ANSWER, "temperature": 0, "max_output_tokens": 80}
ENDED = ("completed", "incomplete", "failed", "cancelled")


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    inhabitants: int = Field(ge=0, lt=100_000_000)


def raises(kind: type[openai.APIStatusError], code: str, call: object, **asked: object) -> None:
    """The call raises the client's own exception with our code."""
    try:
        call(**asked)
    except kind as error:
        assert error.code == code, error.code
    else:
        raise AssertionError(f"no {kind.__name__}")


def ended(response: object) -> object:
    """Poll a background response until it has ended."""
    deadline = time.monotonic() + 60
    while response.status not in ENDED:
        assert time.monotonic() < deadline, response.status
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    return response


@feature("responses")
def whole() -> None:
    response = client.responses.create(**ASKED)
    assert "Paris" in response.output_text
    assert response.status in ("completed", "incomplete")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


@feature("responses, streamed")
def streamed() -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == client.responses.create(**ASKED).output_text


@feature("responses, stream helper")
def stream_helper() -> None:
    with client.responses.stream(**ASKED) as stream:
        for _ in stream:
            pass
        assert "Paris" in stream.get_final_response().output_text


@feature("responses in the background")
def background() -> None:
    response = client.responses.create(**ASKED, background=True)
    assert response.status in ("queued", "in_progress")
    assert "Paris" in ended(response).output_text


@feature("responses, resumed from any event")
def resumed() -> None:
    stream = client.responses.create(**(ASKED | {"max_output_tokens": 12}), background=True, stream=True)
    events = [event.to_json() for event in stream]
    response_id = json.loads(events[0])["response"]["id"]
    for number in range(len(events) - 1):
        rest = client.responses.retrieve(response_id, stream=True, starting_after=number)
        assert [event.to_json() for event in rest] == events[number + 1 :], number


@feature("responses, left and resumed")
async def left_and_resumed() -> None:
    async with AsyncOpenAI(max_retries=0) as asynchronous:
        for num_events in (1, 5, 11):
            seen = []
            stream = await asynchronous.responses.create(**LONG, background=True, stream=True)
            async for event in stream:
                seen.append(event)
                if len(seen) == num_events:
                    break
            await stream.close()
            response_id = seen[0].response.id
            last = seen[-1].sequence_number
            rest = await asynchronous.responses.retrieve(response_id, stream=True, starting_after=last)
            seen += [event async for event in rest]
            assert [event.sequence_number for event in seen] == list(range(len(seen)))
            text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
            assert text == (await asynchronous.responses.retrieve(response_id)).output_text


@feature("responses, cancel")
def cancel() -> None:
    response = client.responses.create(**(LONG | {"max_output_tokens": 4000}), background=True)
    client.responses.cancel(response.id)
    assert ended(response).status == "cancelled"


@feature("responses, delete")
def delete() -> None:
    response = client.responses.create(**ASKED)
    client.responses.delete(response.id)
    raises(openai.NotFoundError, "not_found", client.responses.retrieve, response_id=response.id)


@feature("responses, previous_response_id")
def previous() -> None:
    first = client.responses.create(**ASKED)
    second = client.responses.create(**(ASKED | {"input": "And of Italy?"}), previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.total_tokens
    items = client.responses.input_items.list(second.id).data
    assert items


@feature("responses, input tokens")
def input_tokens() -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=CAPITAL)
    assert counted.input_tokens == client.responses.create(**ASKED).usage.input_tokens


@feature("responses, incomplete")
def incomplete() -> None:
    response = client.responses.create(**(LONG | {"max_output_tokens": 8}))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@feature("responses, structured output")
def structured() -> None:
    response = client.responses.parse(**(ASKED | {"max_output_tokens": 200}), text_format=City)
    assert isinstance(response.output_parsed, City)


@feature("responses, retry of a lost answer")
def retry() -> None:
    retrying = OpenAI(base_url=CUTTING_URL, max_retries=2)
    tag = {"run": str(time.time_ns())}
    response = retrying.responses.create(**ASKED, metadata=tag)
    assert "Paris" in response.output_text
    assert response.metadata == tag


@feature("responses, prompt too long")
def too_long() -> None:
    raises(openai.BadRequestError, "context_length_exceeded", client.responses.create, **(ASKED | {"input": TOO_LONG}))


def lines(num: int, url: str = "/v1/chat/completions") -> bytes:
    """A batch's input."""
    message = {"role": "user", "content": CAPITAL}
    body = {"model": MODEL, "messages": [message], "temperature": 0, "max_tokens": 4}
    entries = [{"custom_id": f"line-{n}", "method": "POST", "url": url, "body": body} for n in range(num)]
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def finished(batch: object) -> object:
    """Poll a batch until it has ended."""
    deadline = time.monotonic() + 120
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


@feature("conversations")
def conversations() -> None:
    talk = client.conversations.create(items=[{"type": "message", "role": "user", "content": "My name is Ann."}])
    answer = client.responses.create(conversation=talk.id, **ASKED)
    items = list(client.conversations.items.list(talk.id, order="asc"))
    assert [item.type for item in items] == ["message"] * 3
    assert items[2].content[0].text == answer.output_text
    background = client.responses.create(conversation=talk.id, background=True, **ASKED)
    while client.responses.retrieve(background.id).status not in ENDED:
        time.sleep(0.1)
    assert len(list(client.conversations.items.list(talk.id))) == 5
    assert client.conversations.delete(talk.id).deleted


@feature("stored chats")
def stored_chats() -> None:
    asked = {"model": MODEL, "messages": [{"role": "user", "content": CAPITAL}], "max_tokens": 8, "temperature": 0}
    made = client.chat.completions.create(**asked, store=True, metadata={"suite": "clients"})
    found = client.chat.completions.retrieve(made.id)
    assert found.choices == made.choices
    assert client.chat.completions.messages.list(made.id).data[0].content == CAPITAL
    client.chat.completions.update(made.id, metadata={"suite": "again"})
    listed = [chat.id for chat in client.chat.completions.list(metadata={"suite": "again"})]
    assert listed == [made.id]
    assert client.chat.completions.delete(made.id).deleted
    raises(openai.NotFoundError, "not_found", client.chat.completions.retrieve, completion_id=made.id)


@feature("files")
def files() -> None:
    content = lines(3)
    uploaded = client.files.create(file=("input.jsonl", content), purpose="batch")
    assert (uploaded.filename, uploaded.bytes) == ("input.jsonl", len(content))
    assert client.files.content(uploaded.id).read() == content
    assert uploaded.id in [file.id for file in client.files.list()]
    client.files.delete(uploaded.id)
    raises(openai.NotFoundError, "not_found", client.files.retrieve, file_id=uploaded.id)


@feature("uploads")
def uploads() -> None:
    content = b"x" * 100_000
    done = client.uploads.upload_file_chunked(
        file=content,
        filename="notes.txt",
        bytes=len(content),
        mime_type="text/plain",
        purpose="user_data",
        part_size=40_000,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
    )
    assert done.file is not None
    assert client.files.content(done.file.id).read() == content
    client.files.delete(done.file.id)


@feature("batches")
def batches() -> None:
    uploaded = client.files.create(file=("input.jsonl", lines(24)), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"k": "v"}
    )
    batch = finished(batch)
    assert batch.status == "completed", batch
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (24, 24, 0)
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).read().splitlines()]
    assert sorted(result["custom_id"] for result in results) == sorted(f"line-{n}" for n in range(24))
    assert all(result["response"]["status_code"] == 200 for result in results)
    assert results[0]["response"]["body"]["choices"][0]["message"]["content"]


@feature("batches, cancel")
def cancel_batch() -> None:
    uploaded = client.files.create(file=("input.jsonl", lines(200)), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
    client.batches.cancel(batch.id)
    assert finished(batch).status == "cancelled"


main(asyncio.run)
