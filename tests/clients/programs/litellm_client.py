"""LiteLLM as a client: ``openai/<model>`` with another base URL."""

import asyncio
import json

import litellm
from reporting import (
    BASE_URL,
    CAPITAL,
    CUTTING_URL,
    ENCODER,
    LONG_ANSWER,
    MODEL,
    TOO_LONG,
    assert_one_job_succeeded,
    feature,
    main,
    new_run,
    wait_until_cancelled,
)

litellm.suppress_debug_info = True
litellm.telemetry = False
ASKED = {
    "model": f"openai/{MODEL}",
    "api_base": BASE_URL,
    "messages": [{"role": "user", "content": CAPITAL}],
    "temperature": 0,
    "max_tokens": 24,
    "max_retries": 0,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "inhabitants": {"type": "integer", "maximum": 99999999},
    },
    "required": ["name", "inhabitants"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 40}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def raises(kind: type[Exception], **changes: object) -> None:
    """The call raises LiteLLM's own exception."""
    try:
        litellm.completion(**(ASKED | changes))
    except kind as error:
        assert type(error) is kind, type(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


@feature("chat")
def chat() -> None:
    answer = litellm.completion(**ASKED)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens > 0


@feature("chat, streamed")
def chat_streamed() -> None:
    whole = litellm.completion(**ASKED)
    chunks = list(litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    rebuilt = litellm.stream_chunk_builder(chunks)
    assert rebuilt.usage.total_tokens == whole.usage.total_tokens


@feature("async and concurrent")
async def concurrent() -> None:
    answers = await asyncio.gather(*(litellm.acompletion(**ASKED) for _ in range(4)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    stream = await litellm.acompletion(**ASKED, stream=True)
    assert "Paris" in "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@feature("leaving a stream cancels")
async def leaving() -> None:
    run = new_run()
    asked = ASKED | {"messages": [{"role": "user", "content": LONG_ANSWER}], "max_tokens": 1000}
    stream = await litellm.acompletion(**asked, stream=True, extra_body={"metadata": run})
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.to_thread(wait_until_cancelled, run)


@feature("retry of a lost answer")
def retry() -> None:
    run = new_run()
    asked = ASKED | {"api_base": CUTTING_URL, "max_retries": 2, "extra_body": {"metadata": run}}
    assert "Paris" in litellm.completion(**asked).choices[0].message.content
    assert_one_job_succeeded(run)


@feature("error: bad key")
def bad_key() -> None:
    raises(litellm.AuthenticationError, api_key="hr_nobody_nothing")


@feature("error: unknown model")
def unknown_model() -> None:
    raises(litellm.NotFoundError, model="openai/nobody")


@feature("error: prompt too long")
def too_long() -> None:
    raises(litellm.ContextWindowExceededError, messages=[{"role": "user", "content": TOO_LONG}])


@feature("error: field refused")
def refused() -> None:
    raises(litellm.BadRequestError, extra_body={"mirostat": 2})


@feature("structured output")
def structured() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**(ASKED | {"max_tokens": 200}), response_format=wanted)
    assert set(json.loads(answer.choices[0].message.content)) == {"name", "inhabitants"}


@feature("logprobs")
def logprobs() -> None:
    answer = litellm.completion(**ASKED, logprobs=True, top_logprobs=2)
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


@feature("text completion")
def text_completion() -> None:
    asked = {name: value for name, value in ASKED.items() if name not in ("messages", "model")}
    model = f"text-completion-openai/{MODEL}"
    answer = litellm.text_completion(**asked, model=model, prompt="The capital of France is")
    assert "Paris" in answer.choices[0].text


@feature("embeddings")
def embeddings() -> None:
    answer = litellm.embedding(model=f"openai/{ENCODER}", api_base=BASE_URL, input=["a mill", "a river"])
    assert [len(found["embedding"]) for found in answer.data] == [384, 384]


@feature("responses")
def responses() -> None:
    asked = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "input": CAPITAL, "temperature": 0}
    whole = litellm.responses(**asked, max_output_tokens=24)
    assert "Paris" in whole.output_text
    events = list(litellm.responses(**asked, max_output_tokens=24, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


@feature("tools")
def tools() -> None:
    chosen = {"type": "function", "function": {"name": "weather"}}
    answer = litellm.completion(**(ASKED | {"max_tokens": 100}), tools=[WEATHER], tool_choice=chosen)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


main(asyncio.run)
