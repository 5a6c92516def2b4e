"""Several answers to one request: the official client, a live server, a real worker process with a tiny real model."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from headrace.models.catalog import register
from headrace.store.db.database import Database
from headrace.store.settings import Settings
from tests.e2e.test_embeddings import calling, worker
from tests.models.tiny import build, save, save_tokenizer
from tests.processes import StartProcess
from tests.workers.conftest import Bench, Duties

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"
PROMPT = "The mill on the river turns and"
ASKED: dict[str, Any] = {"model": "tiny", "temperature": 1.0, "max_tokens": 24, "seed": 7}
CHAT: dict[str, Any] = {**ASKED, "messages": [{"role": "user", "content": PROMPT}]}


def save_tiny(folder: Path) -> Path:
    save_tokenizer(save(build("llama"), folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "</s>"}))
    return folder


@dataclass
class Asking:
    client: OpenAI
    bench: Bench
    start: StartProcess
    settings: Settings

    @contextmanager
    def worker(self, **changes: object) -> Iterator[Any]:
        shown_at_once = {"device": "cpu", "stream_deltas_per_s": 100_000, "native_kernels": "off", **changes}
        with worker(self.start, self.settings, "tiny", **shown_at_once) as process:
            yield process


@pytest.fixture
def asking(settings: Settings, db: Database, tmp_path: Path, start_process: StartProcess) -> Iterator[Asking]:
    version = register(db, "tiny", str(save_tiny(tmp_path / "tiny")), "float32", actor="tests")
    bench = Bench(db, settings, version)
    with calling(settings, db, bench.tenant_id) as client:
        yield Asking(client, bench, start_process, settings)
    bench.close()


def single_texts(client: OpenAI, prompt: Any, seeds: Sequence[int], **changes: Any) -> list[str]:
    """What requests of one answer each get."""
    asked = {**ASKED, **changes}
    return [client.completions.create(**{**asked, "seed": seed}, prompt=prompt).choices[0].text for seed in seeds]


def joined(chunks: Sequence[Any]) -> dict[int, str]:
    """The text of each choice of a stream of completions."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + as_stored(choice.text)
    return texts


def as_stored(text: str) -> str:
    """The text as Postgres can store it; a model of random weights also says U+0000."""
    return text.replace("\0", "\ufffd")


@pytest.mark.full
def test_each_choice_is_what_its_own_request_would_get(asking: Asking) -> None:
    client, create = asking.client, asking.client.completions.create
    with asking.worker():
        alone = single_texts(client, PROMPT, [7, 8, 9])
        first = create(**ASKED, prompt=PROMPT)
        other = single_texts(client, "Bread", [7, 8])
        whole = create(**ASKED, prompt=PROMPT, n=3, best_of=3, logprobs=1)
        chunks = list(create(**ASKED, prompt=PROMPT, n=3, stream=True, stream_options={"include_usage": True}))
        both = create(**ASKED, prompt=[PROMPT, "Bread"], n=2)
        ids = create(**ASKED, prompt=[[70, 71, 72], [73, 74]])
        chat = client.chat.completions.create(**CHAT, n=2)
        said = [client.chat.completions.create(**{**CHAT, "seed": seed}).choices[0].message.content for seed in (7, 8)]
        spoken = list(client.chat.completions.create(**CHAT, n=2, stream=True))
        line = {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/completions",
            "body": {**ASKED, "prompt": PROMPT, "n": 3},
        }
        file = client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        until = time.monotonic() + 60
        while batch.status not in ("completed", "failed") and time.monotonic() < until:
            time.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        output = json.loads(client.files.content(batch.output_file_id or "").text)
    assert len({*alone}) == 3, "the seeds matter"
    assert [(one.index, one.text) for one in whole.choices] == list(enumerate(alone))
    assert joined(chunks) == dict(enumerate(alone))
    assert [one.text for one in both.choices] == [*alone[:2], *other]
    assert len(ids.choices) == 2
    assert [(one.index, one.message.content) for one in chat.choices] == list(enumerate(said))
    contents = dict.fromkeys(range(2), "")
    for chunk in spoken:
        contents[chunk.choices[0].index] += as_stored(chunk.choices[0].delta.content or "")
    assert contents == dict(enumerate(said))
    ends = [one.choices[0].index for one in spoken if one.choices[0].finish_reason is not None]
    assert (sorted(ends), len({one.id for one in spoken})) == ([0, 1], 1)
    assert [one["text"] for one in output["response"]["body"]["choices"]] == alone
    # Each prompt counts once, and each answer.
    usage, tokens = whole.usage, [one.logprobs for one in whole.choices]
    assert usage is not None
    assert first.usage is not None
    assert usage.prompt_tokens == first.usage.prompt_tokens
    assert usage.completion_tokens >= sum(len(one.tokens or ()) for one in tokens if one is not None) > 48
    assert chunks[-1].usage == usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


@pytest.mark.full
def test_a_killed_worker_splices_no_choice(asking: Asking) -> None:
    client = asking.client
    asked: dict[str, Any] = {**ASKED, "prompt": PROMPT, "n": 3, "max_tokens": 300, "logprobs": 1}
    duties = Duties(asking.bench)
    duties.start()
    with ThreadPoolExecutor(1) as caller:
        with asking.worker(environment="test", failpoints="stream.published=kill@5") as first:
            stream = caller.submit(lambda: list(client.completions.create(**asked, stream=True)))
            first.wait_exit()
            asking.bench.end_leases()
        with asking.worker():
            chunks = stream.result(60)
            whole = client.completions.create(**asked)
    duties.stop()
    job = asking.bench.query("SELECT attempt, usage FROM jobs ORDER BY id LIMIT 1")[0]
    assert job.attempt == 2
    assert joined(chunks) == {one.index: one.text for one in whole.choices}
    tokens: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            tokens.setdefault(choice.index, []).extend((choice.logprobs and choice.logprobs.tokens) or ())
    assert tokens == {one.index: one.logprobs.tokens for one in whole.choices if one.logprobs is not None}
    assert whole.usage is not None
    assert job.usage["output_tokens"] == whole.usage.completion_tokens
