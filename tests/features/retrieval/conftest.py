"""Vector stores with passages, without a worker."""

import random
import struct
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Protocol

import pytest
from sqlalchemy import text

from headrace.features.retrieval import store_files, vector_stores
from headrace.features.retrieval.passages import FilePassages, Passage
from headrace.features.retrieval.store_files import NewStoreFile
from headrace.features.retrieval.vector_stores import StoreModel, VectorStore
from headrace.store.db.database import Database
from headrace.store.ids import new_id

WIDTH = 16


class AddFile(Protocol):
    """Adds a file with these texts to a store, and returns its id."""

    def __call__(
        self,
        store: VectorStore,
        texts: Sequence[str],
        *,
        vectors: Sequence[Sequence[float]] | None = None,
        attributes: Mapping[str, object] | None = None,
        db: Database | None = None,
    ) -> str: ...


def random_vector(rng: random.Random) -> tuple[float, ...]:
    numbers = [rng.gauss(0, 1) for _ in range(WIDTH)]
    length = sqrt(sum(number * number for number in numbers))
    return tuple(number / length for number in numbers)


@pytest.fixture
def store(db: Database, tenant: str) -> VectorStore:
    return vector_stores.create(db, tenant, StoreModel("vectors", 1, WIDTH))


@pytest.fixture
def add_file(db: Database) -> AddFile:
    rng = random.Random(7)
    own = db

    def add(
        store: VectorStore,
        texts: Sequence[str],
        *,
        vectors: Sequence[Sequence[float]] | None = None,
        attributes: Mapping[str, object] | None = None,
        db: Database | None = None,
    ) -> str:
        db, file_id = db or own, new_id("file")
        with db.begin() as connection:
            connection.execute(text("INSERT INTO blobs (digest, num_bytes) VALUES ('d', 9) ON CONFLICT DO NOTHING"))
            connection.execute(
                text(
                    "INSERT INTO files (id, tenant_id, digest, num_bytes, filename, purpose) "
                    "VALUES (:id, :tenant, 'd', 9, 'a.txt', 'assistants')"
                ),
                {"id": file_id, "tenant": store.tenant_id},
            )
        new = NewStoreFile(file_id, attributes or {}, 100, 0)
        ((attached,), _) = store_files.attach(db, store.tenant_id, store.id, [new])
        given = vectors or [random_vector(rng) for _ in texts]
        found = FilePassages(
            attached.ticket,
            store.tenant_id,
            tuple(Passage(one, 0, len(one)) for one in texts),
            tuple(struct.pack(f"<{len(one)}f", *one) for one in given),
        )
        with db.begin() as connection:
            for _ in range(2):  # the second time changes nothing
                found.write(connection, db.seal)
        return file_id

    return add
