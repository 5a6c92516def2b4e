"""The official Python client."""

import asyncio
import itertools

import openai
from openai import AsyncOpenAI, OpenAI
from reporting import (
    CAPITAL,
    CUTTING_URL,
    LONG_ANSWER,
    MODEL,
    TOO_LONG,
    assert_one_job_succeeded,
    feature,
    main,
    new_run,
    wait_until_cancelled,
)

client = OpenAI(max_retries=0)
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0, "max_tokens": 24}


def raises(kind: type[openai.APIStatusError], code: str, **changes: object) -> None:
    """The call raises the client's own exception with our code."""
    try:
        client.chat.completions.create(**(ASKED | changes))
    except kind as error:
        assert error.code == code, error.code
    else:
        raise AssertionError(f"no {kind.__name__}")


@feature("chat")
def chat() -> None:
    whole = client.chat.completions.create(**ASKED)
    assert "Paris" in whole.choices[0].message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


@feature("chat, streamed")
def chat_streamed() -> None:
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage


@feature("chat, stream helper")
def chat_stream_helper() -> None:
    with client.chat.completions.stream(**ASKED) as stream:
        kinds = {event.type for event in stream}
        assert "Paris" in stream.get_final_completion().choices[0].message.content
    assert {"chunk", "content.delta", "content.done"} <= kinds


@feature("async and concurrent")
async def concurrent() -> None:
    async with AsyncOpenAI(max_retries=0) as asynchronous:
        answers = await asyncio.gather(*(asynchronous.chat.completions.create(**ASKED) for _ in range(8)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1


@feature("leaving a stream cancels")
def leaving() -> None:
    for num_chunks in (1, 2, 5, 13):
        run = new_run()
        asked = ASKED | {"messages": [{"role": "user", "content": LONG_ANSWER}], "max_tokens": 1000}
        with client.chat.completions.create(**asked, stream=True, metadata=run) as stream:
            assert len(list(itertools.islice(stream, num_chunks))) == num_chunks
        wait_until_cancelled(run)


@feature("retry of a lost answer")
def retry() -> None:
    run = new_run()
    retrying = OpenAI(base_url=CUTTING_URL, max_retries=2)
    assert "Paris" in retrying.chat.completions.create(**ASKED, metadata=run).choices[0].message.content
    assert_one_job_succeeded(run)


@feature("error: bad key")
def bad_key() -> None:
    try:
        client.with_options(api_key="hr_nobody_nothing").chat.completions.create(**ASKED)
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("no AuthenticationError")


@feature("error: unknown model")
def unknown_model() -> None:
    raises(openai.NotFoundError, "model_not_found", model="nobody")


@feature("error: prompt too long")
def too_long() -> None:
    raises(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": TOO_LONG}])


@feature("error: field refused")
def refused() -> None:
    raises(openai.BadRequestError, "unsupported_parameter", n=2)


@feature("models")
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(f"{MODEL}@1").id == f"{MODEL}@1"


main(asyncio.run)
