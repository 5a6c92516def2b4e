"""Vector stores: what a search finds, and whether every file is read once although workers are killed.

    python -m benchmarks.retrieval recall --url http://127.0.0.1:8000 --key hr_… [--model minilm]
    python -m benchmarks.retrieval questions --url http://127.0.0.1:8000 --key hr_… [--model minilm]
    python -m benchmarks.retrieval files 10000

``recall``: each section of the pages in ``docs`` is a file without its heading, and the heading is the question. It is
found if the section is among the first five results: of both halves fused, of vectors alone, and of words alone.

``questions``: the same for the questions of ``retrieval_questions.txt``, in natural words, over the texts of Python's
reference that come with Python (``pydoc_data``). Each is found if one of the first five passages has its phrase.

``files``: so many small files are added in batches on a local stack with an encoder without weights. A worker is killed
after each third of them. Every passage must be there once.
"""

import argparse
import io
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pydoc_data import topics
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from sqlalchemy import text

from headrace.cli.local.home import Home
from headrace.cli.local.stack import running_stack
from headrace.store.db.database import Database
from headrace.store.settings import load_settings

ROOT = Path(__file__).parents[1]
HALVES = {"fused": (1.0, 1.0), "vectors": (1.0, 0.0), "words": (0.0, 1.0)}
BATCH = 250
_UNDERLINE = re.compile(r"^[*=~-]+$", re.MULTILINE)
QUESTIONS = Path(__file__).with_name("retrieval_questions.txt")


def sections() -> Iterator[tuple[str, str]]:
    """Yield heading and text of each section of at least forty words."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        title, *parts = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
        name = title.partition("\n")[0].removeprefix("# ")
        for part in parts:
            heading, _, body = part.partition("\n")
            if len(body.split()) >= 40:
                yield f"{name}: {heading}", body


def add(client: OpenAI, store_id: str, files: list[tuple[str, bytes]]) -> list[str]:
    """Upload files and add them as batches; return their ids in the store."""
    ids = [client.files.create(file=(name, io.BytesIO(data)), purpose="assistants").id for name, data in files]
    for at in range(0, len(ids), BATCH):
        client.vector_stores.file_batches.create(store_id, file_ids=ids[at : at + BATCH])
    return ids


def wait(client: OpenAI, store_id: str, num_files: int, tend: Callable[[], None] = lambda: None) -> None:
    """Wait until so many files are read or failed. ``tend`` starts processes that have ended again."""
    while (counts := client.vector_stores.retrieve(store_id).file_counts).completed + counts.failed < num_files:
        tend()
        time.sleep(0.5)


def recall(client: OpenAI, model: str) -> None:
    """Print recall at five of each way to search."""
    found = list(sections())
    store = client.vector_stores.create(name="docs", extra_body={"model": model})
    ids = add(client, store.id, [(f"{n}.md", body.encode()) for n, (_, body) in enumerate(found)])
    wait(client, store.id, len(ids))
    hits = dict.fromkeys(HALVES, 0)
    for (heading, _), file_id in zip(found, ids, strict=True):
        for name, page in searches(client, store.id, heading):
            hits[name] += file_id in {one["file_id"] for one in page}
    print(f"{len(found)} sections; {shares(hits, len(found))}")
    client.vector_stores.delete(store.id)


def searches(client: OpenAI, store_id: str, query: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each way to search, and its first five results."""
    for name, (vectors, words) in HALVES.items():
        weights = {"embedding_weight": vectors, "text_weight": words}
        options = {"ranking_options": {"hybrid_search": weights}, "query": query, "max_num_results": 5}
        page = client.post(f"/vector_stores/{store_id}/search", body=options, cast_to=httpx2.Response).json()
        yield name, page["data"]


def shares(hits: Mapping[str, int], num_asked: int) -> str:
    """Return recall at five of each way to search, as a text."""
    return "recall@5: " + ", ".join(f"{name} {n / num_asked:.3f}" for name, n in hits.items())


def questions(client: OpenAI, model: str) -> None:
    """Print recall at five over Python's reference. Questions whose phrase this Python's texts lack are left out."""
    texts = reference()
    asked = [line.split("|") for line in QUESTIONS.read_text().splitlines()]
    known = [(question, phrase) for question, phrase in asked if any(phrase in one for one in map(joined, texts))]
    store = client.vector_stores.create(name="reference", extra_body={"model": model})
    add(client, store.id, [(f"{n}.txt", text.encode()) for n, text in enumerate(texts)])
    wait(client, store.id, len(texts))
    hits = dict.fromkeys(HALVES, 0)
    for question, phrase in known:
        for name, page in searches(client, store.id, question):
            hits[name] += any(phrase in joined(one["content"][0]["text"]) for one in page)
    print(f"{len(texts)} texts, {len(known)} of {len(asked)} questions; {shares(hits, len(known))}")
    client.vector_stores.delete(store.id)


def reference() -> list[str]:
    """Return the texts of Python's reference, without those that are a part of another one."""
    kept: dict[str, str] = {}
    for one in sorted(topics.topics.values(), key=len, reverse=True):
        # A part has its own title, and other lines below its titles.
        body = joined(_UNDERLINE.sub("", one.partition("\n\n")[2]))
        if not any(body in other for other in kept):
            kept[body] = one
    return list(kept.values())


def joined(text: str) -> str:
    """Return a text with one blank for each run of blanks and line ends."""
    return " ".join(text.split())


def files(num_files: int) -> None:
    """Print whether every passage is there once after two kills."""
    with tempfile.TemporaryDirectory(prefix="headrace-retrieval-") as folder:
        settings = load_settings().model_copy(update={"home": Path(folder), "api_port": 0, "flower_port": 0})
        with running_stack(settings, ["fake-encoder"], print) as stack:
            client = OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key, timeout=120)
            store = client.vector_stores.create(name="many")
            began_at = time.monotonic()
            add(client, store.id, [(f"{n}.txt", f"Number {n}. ".encode() * 100) for n in range(num_files)])
            print(f"added after {time.monotonic() - began_at:.0f} s")
            for third in (1, 2):
                wait(client, store.id, num_files * third // 3, stack.supervisor.tend)
                os.kill(_worker_pid(), signal.SIGKILL)
                print(f"killed a worker after {time.monotonic() - began_at:.0f} s")
            wait(client, store.id, num_files, stack.supervisor.tend)
            print(
                f"read after {time.monotonic() - began_at:.0f} s: {client.vector_stores.retrieve(store.id).file_counts}"
            )
            record = Home(settings.home).record()
            if record is not None:
                _check(record.database_url)


def _worker_pid() -> int:
    """Return the process id of the worker. Waits until the supervisor has started one."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended
                if {"workers", "--model"} <= {*process.cmdline()}:
                    return process.pid
        time.sleep(0.5)


def _check(database_url: str) -> None:
    db = Database(database_url, application_name="benchmark")
    with db.autocommit() as connection:
        row = connection.execute(
            text(
                "SELECT (SELECT count(*) FROM vector_store_passages) AS num, "
                "(SELECT sum(num_passages) FROM vector_store_files) AS noted, "
                "(SELECT count(DISTINCT file_id) FROM vector_store_passages) AS files, "
                "(SELECT count(*) FROM jobs WHERE attempt > 1) AS again"
            )
        ).one()
    db.close()
    print(f"{row.num} passages of {row.files} files, {row.noted} noted; {row.again} jobs ran again")


MEASURES = {"recall": recall, "questions": questions}


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in MEASURES:
        asked = commands.add_parser(name)
        asked.add_argument("--url", required=True)
        asked.add_argument("--key", required=True)
        asked.add_argument("--model", default="minilm")
    commands.add_parser("files").add_argument("num", type=int)
    given = parser.parse_args()
    if given.command in MEASURES:
        MEASURES[given.command](OpenAI(base_url=f"{given.url}/v1", api_key=given.key, timeout=120), given.model)
    else:
        files(given.num)


if __name__ == "__main__":
    main()
