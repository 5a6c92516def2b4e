"""The search for passages of one vector store: by vectors, by words, and both fused by their ranks.

    vector half   the passages with the largest cosine. With pgvector an index of the store answers, if it has one
                  (``vector_indexes``) and no filter is given; else every vector of the store is compared
    word half     the passages with words of the query, by ``ts_rank``
    fusion        reciprocal rank fusion (Cormack et al. 2009): the sum of weight / (5 + rank) over the halves

Without pgvector the cosine is a sum in plain SQL: the same result, and slower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, text

from headrace.features.retrieval.attribute_filters import AttributeFilter
from headrace.features.retrieval.passages import FULL_TEXT, Passage, array_of, opened
from headrace.store.db.database import Database

NUM_CANDIDATES = 50
"""The best passages of each half that are fused."""

RANK_OFFSET = 5
"""The best of one half comes before what is at rank 8 or below in both. With the usual 60 it came after all of them."""

Key: TypeAlias = tuple[str, int]
"""A passage of a store: its file and its position there."""


@dataclass(frozen=True, slots=True)
class Query:
    """A search in one store. ``vector`` has length 1; the halves count by their weights, and one of 0 is left out.

    ``is_exact``: compare every vector, also where there is an index.
    """

    store_id: str
    vector: tuple[float, ...]
    words: str
    limit: int
    attributes: AttributeFilter | None = None
    vector_weight: float = 1.0
    word_weight: float = 1.0
    is_exact: bool = False


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """A passage of the result. ``score`` is between 0 and 1; of a search by vectors alone it is the cosine."""

    file_id: str
    filename: str
    attributes: dict[str, Any]
    position: int
    passage: Passage
    score: float


_HAS_EXTENSION = text("SELECT to_regtype('vector') IS NOT NULL")

# The one condition that keeps a search within its tenant and its store: every statement below has it from here.
_IN_STORE = "tenant_id = :tenant_id AND store_id = :store_id"

_OF_FILES = f""" AND file_id IN (
    SELECT file_id FROM vector_store_files WHERE {_IN_STORE} AND {{condition}})"""

_VECTORS = f"""
SELECT file_id, position, {{similarity}} AS score FROM vector_store_passages
WHERE {_IN_STORE}{{of_files}}
ORDER BY {{order}} LIMIT :limit
"""

# The words of the query are alternatives: a question has words that no answer has.
_WORDS = f"""
WITH asked AS (
    SELECT CAST(replace(CAST(plainto_tsquery('{FULL_TEXT}', :words) AS text), '&', '|') AS tsquery) AS query)
SELECT file_id, position, ts_rank(terms, query, 1) AS score FROM vector_store_passages CROSS JOIN asked
WHERE {_IN_STORE} AND terms @@ query{{of_files}}
ORDER BY score DESC, file_id, position LIMIT :limit
"""

_READ = text(f"""
SELECT found.store_id, found.file_id, found.position, found.tenant_id, found.content, attached.attributes,
    files.filename
FROM (SELECT * FROM vector_store_passages WHERE {_IN_STORE}) AS found
JOIN vector_store_files AS attached USING (tenant_id, store_id, file_id)
JOIN files ON files.tenant_id = found.tenant_id AND files.id = found.file_id
WHERE (found.file_id, found.position) IN (
    SELECT * FROM unnest(CAST(:file_ids AS text[]), CAST(:positions AS int[])))
""")


def search(db: Database, tenant_id: str, query: Query) -> list[FoundPassage]:
    """Return the best passages, the best one first. A tenant finds its own alone. Raises CannotOpen."""
    with db.begin(tenant_id=tenant_id) as connection:
        by_vector = _by_vectors(connection, tenant_id, query) if query.vector_weight else {}
        by_word = _by_words(connection, tenant_id, query) if query.word_weight and query.words.strip() else {}
        scores = by_vector
        if query.word_weight:
            scores = fused([(list(by_vector), query.vector_weight), (list(by_word), query.word_weight)])
        best = sorted(scores, key=lambda key: (-scores[key], key))[: query.limit]
        values: dict[str, Any] = {"tenant_id": tenant_id, "store_id": query.store_id}
        values |= {"file_ids": [key[0] for key in best], "positions": [key[1] for key in best]}
        rows = {(row["file_id"], row["position"]): row for row in connection.execute(_READ, values).mappings()}
    return [
        FoundPassage(
            file_id=key[0],
            filename=rows[key]["filename"],
            attributes=rows[key]["attributes"],
            position=key[1],
            passage=opened(rows[key], db.seal),
            score=min(1.0, max(0.0, scores[key])),
        )
        for key in best
        if key in rows
    ]


def has_extension(connection: Connection) -> bool:
    """Return whether the database has pgvector."""
    return bool(connection.execute(_HAS_EXTENSION).scalar_one())


def fused(halves: Sequence[tuple[Sequence[Key], float]]) -> dict[Key, float]:
    """Return the fused scores of ranked lists with their weights; 1 is a passage that is the first of every list."""
    most = sum(weight for _, weight in halves) / (RANK_OFFSET + 1)
    scores: dict[Key, float] = {}
    for ranked, weight in halves:
        for rank, key in enumerate(ranked, 1):
            scores[key] = scores.get(key, 0.0) + weight / (RANK_OFFSET + rank) / most
    return scores


def _by_vectors(connection: Connection, tenant_id: str, query: Query) -> Mapping[Key, float]:
    of_files, values = _parameters(tenant_id, query)
    width = len(query.vector)
    if has_extension(connection):
        distance = f"CAST(embedding AS vector({width})) <=> CAST(CAST(:vector AS real[]) AS vector({width}))"
        similarity = f"1 - ({distance})"
        # An index answers for this very expression only. One that filters afterwards would find too few passages.
        order = f"({distance}) + 0" if query.is_exact or of_files else distance
        # Without enough candidates the index would return fewer passages than are asked for.
        connection.execute(text("SELECT set_config('hnsw.ef_search', '200', true)"))
    else:
        similarity = "(SELECT sum(a * b) FROM unnest(embedding, CAST(:vector AS real[])) AS pair(a, b))"
        order = "score DESC NULLS LAST"
    statement = text(_VECTORS.format(similarity=similarity, of_files=of_files, order=order))
    rows = connection.execute(statement, values | {"vector": array_of(query.vector)}).all()
    return {(row.file_id, row.position): float(row.score or 0.0) for row in rows}


def _by_words(connection: Connection, tenant_id: str, query: Query) -> Mapping[Key, float]:
    of_files, values = _parameters(tenant_id, query)
    statement = text(_WORDS.format(of_files=of_files))
    rows = connection.execute(statement, values | {"words": query.words}).all()
    return {(row.file_id, row.position): row.score for row in rows}


def _parameters(tenant_id: str, query: Query) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = {"tenant_id": tenant_id, "store_id": query.store_id}
    values["limit"] = max(query.limit, NUM_CANDIDATES)
    if query.attributes is None:
        return "", values
    return _OF_FILES.format(condition=query.attributes.sql), values | query.attributes.values
