"""The official Python client."""

import asyncio
import itertools
import json
import math
import re
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from reporting import (
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

client = OpenAI(max_retries=0)
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0, "max_tokens": 24}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)
    size: Literal["small", "large"]


class Weather(BaseModel):
    """Return the weather in a city."""

    city: str = Field(max_length=40)


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
    raises(openai.BadRequestError, "unsupported_parameter", extra_body={"mirostat": 2})


@feature("several answers")
def choices() -> None:
    answer = client.chat.completions.create(**ASKED, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = dict.fromkeys(range(3), "")
    for chunk in client.chat.completions.create(**ASKED, n=3, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in answer.choices}


@feature("error: impossible schema")
def impossible_schema() -> None:
    schema = {"type": "object", "properties": {"a": False}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    raises(openai.BadRequestError, "invalid_json_schema", response_format=wanted)


@feature("structured output")
def structured() -> None:
    parsed = client.chat.completions.parse(**(ASKED | {"max_tokens": 200}), response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)


@feature("structured output, streamed")
def structured_stream() -> None:
    with client.chat.completions.stream(**(ASKED | {"max_tokens": 200}), response_format=City) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(parsed, City)


@feature("JSON mode")
def json_mode() -> None:
    answer = client.chat.completions.create(
        **(ASKED | {"max_tokens": 300}), response_format={"type": "json_object"}, seed=1
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.lstrip().startswith("{")


@feature("regex and choice")
def regex_and_choice() -> None:
    def answer(**wanted: object) -> str:
        asked = client.chat.completions.create(**ASKED, extra_body={"structured_outputs": wanted})
        return asked.choices[0].message.content

    assert re.fullmatch(r"[A-Z][a-z]{2,9}!", answer(regex="[A-Z][a-z]{2,9}!"))
    assert answer(choice=["Rome", "Paris"]) in ("Rome", "Paris")


@feature("logprobs")
def logprobs() -> None:
    answer = client.chat.completions.create(**ASKED, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).strip() == answer.choices[0].message.content.strip()
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001
        # Greedy: the sampled token is the most likely one.
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
    streamed = client.chat.completions.create(**ASKED, logprobs=True, stream=True)
    pieces = [
        piece for chunk in streamed for choice in chunk.choices if choice.logprobs for piece in choice.logprobs.content
    ]
    assert [piece.logprob for piece in pieces] == [token.logprob for token in tokens]


@feature("text completion")
def text_completion() -> None:
    asked = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**asked)
    assert "Paris" in whole.choices[0].text
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text


WEATHER = openai.pydantic_function_tool(Weather)


@feature("tools")
def tools() -> None:
    question = {"role": "user", "content": "How is the weather in Paris?"}
    asked = ASKED | {"messages": [question], "max_tokens": 100, "tools": [WEATHER]}
    chosen = {"type": "function", "function": {"name": "Weather"}}
    answer = client.chat.completions.parse(**asked, tool_choice=chosen)
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    function = {"name": call.function.name, "arguments": call.function.arguments}
    said = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
    again = client.chat.completions.create(**(asked | {"messages": [question, said, result]}), tool_choice="none")
    assert again.choices[0].message.content


@feature("tools, streamed")
def tools_stream() -> None:
    question = {"role": "user", "content": "How is the weather in Paris?"}
    asked = ASKED | {"messages": [question], "max_tokens": 100, "tools": [WEATHER], "tool_choice": "required"}
    asked["parallel_tool_calls"] = False
    with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    assert kinds.count("tool_calls.function.arguments.delta") > 1


RULES = """You are a travel guide for the cities on a long river. You know the towns, the bridges, the mills and the
ferries, and you look up the weather before you advise anything. Work through the cities of the list one after the
other, from the source to the sea. For each city look up the weather once, and remember what you have found. Never
guess a temperature, never repeat a city, and never advise a boat trip in a storm. If a city is not known, say so and go
on with the next one. Travellers come by train, by bicycle or on foot, so think of luggage, of rain and of the hour of
the last ferry. Prices are in the local currency. Museums are closed on Mondays, and on most holidays too. Answer in
plain words, in at most three sentences for each city, without lists and without headings. Mention a bridge or a mill if
there is one, because the readers like them. At the end write a short summary of the whole journey with the three best
days for it, and explain in one sentence why these days are better than the others."""
CITIES = [
    "Basel",
    "Strasbourg",
    "Speyer",
    "Mannheim",
    "Worms",
    "Mainz",
    "Bingen",
    "Koblenz",
    "Bonn",
    "Cologne",
    "Dusseldorf",
    "Duisburg",
    "Wesel",
    "Emmerich",
    "Arnhem",
    "Nijmegen",
    "Utrecht",
    "Dordrecht",
    "Rotterdam",
    "Delft",
]


@feature("twenty turns with tools")
def many_turns() -> None:
    """An agent that looks up one city after the other finds its earlier turns in the prefix cache."""
    messages = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": f"The cities are {', '.join(CITIES)}. Look up the weather in each."},
    ]
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 40, "tools": [WEATHER], "tool_choice": "required"}
    shares = []
    for number, city in enumerate(CITIES):
        answer = client.chat.completions.create(**asked, messages=messages)
        details = answer.usage.prompt_tokens_details
        shares.append((details.cached_tokens, answer.usage.prompt_tokens))
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        found = f"{city}: rain, {number + 5} degrees, no storm."
        messages += [{"role": "tool", "tool_call_id": call.id, "content": found} for call in message.tool_calls or ()]
    cached, prompt = (sum(each) for each in zip(*shares[1:], strict=True))
    print(f"{cached} of {prompt} prompt tokens were cached: {cached / prompt:.3f}")
    assert cached / prompt > 0.9, f"{cached} of {prompt} prompt tokens were cached: {shares}"
    assert all(found / size > 0.8 for found, size in shares[1:]), shares


@feature("embeddings")
def embeddings() -> None:
    texts = ["a mill on the river", "the river's mill", "tax law"]
    vectors = [found.embedding for found in client.embeddings.create(model=ENCODER, input=texts).data]
    plain = client.embeddings.create(model=ENCODER, input=texts, encoding_format="float")
    assert max(abs(a - b) for a, b in zip(vectors[0], plain.data[0].embedding, strict=True)) < 1e-6
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > 0.7 > far


@feature("moderations")
def moderations() -> None:
    found = client.moderations.create(model="fake-classifier", input=["I love rivers.", "a mill"])
    assert all(result.flagged == any(dict(result.categories).values()) for result in found.results)
    assert len(found.results) == 2


@feature("models")
def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(f"{MODEL}@1").id == f"{MODEL}@1"


main(asyncio.run)
