"""Text completions, asked by the official client."""

from typing import Any

from openai import OpenAI

from headrace.store.db.database import Database
from headrace.store.jobs import jobs
from tests.cases import some_of
from tests.producer_api.scripted_worker import ScriptedWorker

SAID = ["wä", "ter ", "wheel"]
TEXT = "".join(SAID)


def test_a_completion_whole_and_streamed(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {"model": "tiny", "prompt": "The mill"}
    with worker.serve(lambda _: SAID):
        raw = openai.completions.with_raw_response.create(**ask)
        bare = list(openai.completions.create(**ask, stream=True))
        chunks = list(openai.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    whole = raw.parse()
    assert (whole.object, whole.model, whole.choices[0].text, whole.choices[0].finish_reason) == (
        "text_completion",
        "tiny@1",
        TEXT,
        "stop",
    )
    assert whole.id == f"cmpl-{raw.headers['x-job-id'].removeprefix('job_')}"
    assert whole.choices[0].logprobs is None
    assert "".join(chunk.choices[0].text for chunk in bare) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in bare] == [None, None, None, "stop"]
    assert [chunk.choices for chunk in chunks if chunk.usage is not None] == [[]]
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (8, 3)


def test_logprobs_have_the_older_shape(openai: OpenAI, worker: ScriptedWorker) -> None:
    ask: Any = {"model": "tiny", "prompt": "The mill"}
    with worker.serve(lambda _: SAID):
        (choice,) = openai.completions.create(**ask, logprobs=2).choices
        chunks = list(openai.completions.create(**ask, logprobs=2, stream=True))
        (least,) = openai.completions.create(**ask, logprobs=0).choices
    whole = choice.logprobs
    assert whole is not None
    assert (whole.tokens or [])[:4] == ["w", "bytes:\\xc3", "bytes:\\xa4", "t"]
    assert (whole.text_offset or [])[:5] == [0, 1, 1, 2, 3]
    assert whole.token_logprobs == [-0.25] * len(TEXT.encode())
    assert (whole.top_logprobs or [])[0] == {"w": -0.25, "</s>": -1.5}
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        parts = [getattr(chunk.choices[0].logprobs, name) for chunk in chunks if chunk.choices[0].logprobs]
        assert [one for part in parts for one in part] == getattr(whole, name)
    assert least.logprobs is not None
    assert (least.logprobs.top_logprobs or [])[0] == {"w": -0.25}, "the token that came is always there"


@some_of(
    2,
    ("prompt", "stored"),
    [
        ("hi", {"prompt": "hi"}),
        (["hi"], {"prompt": "hi"}),
        ([104, 105], {"token_ids": [104, 105]}),
        ([[0, 105]], {"token_ids": [0, 105]}),  # U+0000 as a text is refused
    ],
)
def test_a_prompt_is_a_text_or_its_tokens(
    openai: OpenAI, worker: ScriptedWorker, db: Database, tenant: str, prompt: Any, stored: dict[str, Any]
) -> None:
    with worker.serve(lambda _: SAID):
        answer = openai.completions.create(
            model="tiny",
            prompt=prompt,
            temperature=0.5,
            seed=3,
            stop=["END"],
            presence_penalty=0.5,
            extra_body={"structured_outputs": {"regex": "[a-z]+"}, "job": {"priority": 2}},
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    (job,) = jobs.list_jobs(db, tenant)
    assert (job.payload["input"], job.priority, job.service_class) == (stored, 2, "interactive")
    sampling = {"max_tokens": 16, "temperature": 0.5, "seed": 3, "stop": ["END"], "presence_penalty": 0.5}
    assert job.payload["sampling"].items() >= (sampling | {"grammar": {"kind": "regex", "text": "[a-z]+"}}).items()
