"""Answers questions from a folder of documents: ``python -m examples.documents_copilot.copilot FOLDER QUESTION``."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from examples.stack import headrace

SUFFIXES = frozenset({".md", ".txt", ".html", ".pdf", ".docx"})


@dataclass(frozen=True)
class Cited:
    """An answer, and the passages that the model was given: file, first character, score."""

    text: str
    passages: tuple[tuple[str, int, float], ...]


def index(client: OpenAI, folder: Path, model: str) -> tuple[str, dict[str, str]]:
    """Add all documents of a folder to a new vector store. Returns its id, and by name why a file was not read."""
    store = client.vector_stores.create(name=folder.name, extra_body={"model": model})
    names: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            names[client.files.create(file=path, purpose="assistants").id] = path.name
    batch = client.vector_stores.file_batches.create(store.id, file_ids=list(names))
    batch = client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id, poll_interval_ms=200)
    failed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed")
    return store.id, {names[one.id]: one.last_error.message if one.last_error else "" for one in failed}


def ask(client: OpenAI, store: str, question: str, model: str) -> Cited:
    """Return an answer from the passages of the store that fit the question."""
    chat = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "Answer from the passages, in one or two sentences."},
            {"role": "user", "content": question},
        ],
        max_tokens=60,
        temperature=0,
        extra_body={"retrieval": {"vector_store_ids": [store], "max_num_results": 2, "max_context_tokens": 500}},
    )
    message = chat.choices[0].message
    citations: list[dict[str, Any]] = [one.model_dump() for one in message.annotations or ()]
    return Cited(message.content or "", tuple((c["filename"], c["place"]["start"], c["score"]) for c in citations))


def report(cited: Cited) -> str:
    """Return an answer with its citations, one a line."""
    lines = [f"  {name}, from character {start} (score {score:.2f})" for name, start, score in cited.passages]
    return "\n".join([cited.text, *lines, ""])


def main() -> None:
    """Read the documents, answer the question and say where the answer is from."""
    parser = argparse.ArgumentParser(prog="python -m examples.documents_copilot.copilot", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--embedding-model", default="minilm")
    options = parser.parse_args()
    with (
        headrace(options.model, options.embedding_model) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client,
    ):
        store, failed = index(client, options.folder, options.embedding_model)
        for name, reason in failed.items():
            sys.stdout.write(f"not read: {name}: {reason}\n")
        for question in options.questions:
            sys.stdout.write(f"> {question}\n{report(ask(client, store, question, options.model))}")


if __name__ == "__main__":
    main()
