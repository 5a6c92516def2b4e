"""HNSW against an exact search in a large vector store: recall at ten, and times.

    python -m benchmarks.vector_index --num 50000 --models build/models

The passages are the shortest different sentences of at least 40 characters from the docstrings of the installed
packages; other sentences of the same kind are the questions. A vector is the weighted mean of minilm's token vectors
without their common direction (SIF, Arora et al. 2017): 384 numbers by what the text says, in seconds instead of the
minutes of the whole model. The passages are written as a worker writes them, on an embedded Postgres with pgvector; the
index is that of ``headrace migrate vectors``.
"""

import argparse
import random
import re
import statistics
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from sysconfig import get_paths
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from sqlalchemy import text
from tokenizers import Tokenizer

from headrace.cli.local.postgres import LocalPostgres
from headrace.features.retrieval import search, store_files, vector_stores
from headrace.features.retrieval.passages import FilePassages, Passage
from headrace.features.retrieval.search import Query
from headrace.features.retrieval.store_files import NewStoreFile
from headrace.features.retrieval.vector_stores import StoreModel, VectorStore
from headrace.migrations import vector_indexes
from headrace.migrations.schema import upgrade
from headrace.models.catalog import fetch
from headrace.store.db.database import Database
from headrace.store.ids import new_id
from headrace.store.tenants.api_keys import create_tenant

WIDTH = 384
NUM_QUERIES = 200
TOP = 10
PER_FILE = 100
SHORTEST, LONGEST = 40, 160
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Vectors = Any  # a float32 array of numpy, a row for each text


def sentences(most: int) -> list[str]:
    """Return the shortest sentences of docstrings, each once, in an order that depends on them alone."""
    found: set[str] = set()
    for path in sorted(Path(get_paths()["purelib"]).rglob("*.py")):
        for block in _DOCSTRING.findall(path.read_text(errors="ignore")):
            for one in _END.split(" ".join(block.split())):
                if SHORTEST <= len(one) <= LONGEST and sum(map(str.isalpha, one)) > 0.75 * len(one):
                    found.add(one)
    ordered = sorted(found, key=lambda one: (len(one), one))[:most]
    random.Random(1).shuffle(ordered)
    return ordered


def embedded(texts: Sequence[str], model: Path) -> Vectors:
    """Return the vectors of the texts, of length 1."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [np.array(one.ids) for one in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    table = load_file(model / "model.safetensors")["embeddings.word_embeddings.weight"].astype(np.float32)
    share = np.bincount(np.concatenate(ids), minlength=len(table)) / sum(map(len, ids))
    weighted = table * (1e-3 / (1e-3 + share[:, None])).astype(np.float32)
    means = np.stack([weighted[one].mean(0) for one in ids])
    common = np.linalg.eigh(means.T @ means)[1][:, -1]
    means -= np.outer(means @ common, common)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def filled(db: Database, texts: Sequence[str], vectors: Vectors) -> VectorStore:
    """Return a store with these passages, in files of a hundred."""
    tenant_id = create_tenant(db, "benchmark")
    store = vector_stores.create(db, tenant_id, StoreModel("minilm", 1, WIDTH))
    with db.begin() as connection:
        connection.execute(text("INSERT INTO blobs (digest, num_bytes) VALUES ('d', 9)"))
    add = text("""INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose)
        VALUES (:id, :tenant, 'd', 9, 'a.txt', 'assistants')""")
    for at in range(0, len(texts), PER_FILE):
        file_id = new_id("file")
        with db.begin() as connection:
            connection.execute(add, {"id": file_id, "tenant": tenant_id})
        ((attached,), _) = store_files.attach(db, tenant_id, store.id, [NewStoreFile(file_id, {}, 100, 0)])
        own = tuple(Passage(one, 0, len(one)) for one in texts[at : at + PER_FILE])
        packed = tuple(struct.pack(f"<{WIDTH}f", *row) for row in vectors[at : at + PER_FILE])
        with db.begin() as connection:
            FilePassages(attached.ticket, tenant_id, own, packed).write(connection, db.seal)
    with db.autocommit() as connection:
        connection.execute(text("ANALYZE vector_store_passages"))
    return store


def found(db: Database, store: VectorStore, queries: Sequence[Query], name: str) -> list[set[tuple[str, int]]]:
    """Search, print the times, and return the keys of the best ten for each question."""
    keys, times = [], []
    for query in queries:
        began_at = time.perf_counter()
        best = search.search(db, store.tenant_id, query)
        times.append((time.perf_counter() - began_at) * 1000)
        keys.append({(one.file_id, one.position) for one in best})
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    print(f"{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {len(queries)} questions", flush=True)
    return keys


def compare(db: Database, texts: Sequence[str], vectors: Vectors, num: int) -> None:
    """Fill a store with the first passages and ask for the rest: exactly, build the index, and again by it."""
    began_at = time.monotonic()
    store = filled(db, texts[:num], vectors[:num])
    print(f"{num} passages written in {time.monotonic() - began_at:.0f} s", flush=True)
    asked = [Query(store.id, tuple(map(float, row)), "", TOP, word_weight=0) for row in vectors[num:]]
    exact = found(db, store, [replace(one, is_exact=True) for one in asked], "exact")
    began_at = time.monotonic()
    print(*vector_indexes.refresh(db), f"in {time.monotonic() - began_at:.0f} s", flush=True)
    by_index = found(db, store, asked, "HNSW")
    shared = [len(one & other) / TOP for one, other in zip(exact, by_index, strict=True)]
    print(f"recall@{TOP}: {statistics.mean(shared):.4f}; lowest of a question {min(shared):.1f}")
    halves = [replace(one, words=words, word_weight=1.0) for one, words in zip(asked, texts[num:], strict=True)]
    found(db, store, halves, "HNSW and words, fused")


def main() -> None:
    """Make the vectors, and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vector_index", description=__doc__)
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--models", type=Path, required=True, help="a folder for minilm")
    given = parser.parse_args()
    given.models.mkdir(parents=True, exist_ok=True)
    texts = sentences(given.num + NUM_QUERIES)
    print(f"{len(texts)} sentences, median {statistics.median(map(len, texts))} characters", flush=True)
    vectors = embedded(texts, fetch("minilm", given.models))
    with tempfile.TemporaryDirectory(prefix="headrace-vectors-") as folder:
        postgres = LocalPostgres(Path(folder) / "pg", Path(folder) / "postgres.log")
        postgres.start()
        db = Database(postgres.url, application_name="benchmark")
        try:
            upgrade(db)
            compare(db, texts, vectors, len(texts) - NUM_QUERIES)
        finally:
            db.close()
            postgres.stop()


if __name__ == "__main__":
    main()
