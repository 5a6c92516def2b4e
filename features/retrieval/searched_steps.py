"""Steps that search: they embed a question as any job, and their output has the passages that answer it.

A call of ``file_search`` has a text of these passages for the model too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.retrieval import search, vector_stores
from headrace.features.retrieval.attribute_filters import read_filter
from headrace.features.retrieval.passages import unit_vector
from headrace.features.retrieval.search import FoundPassage, Query
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim
from headrace.store.payloads.retrieval import HybridWeights, PassagePlace, Retrieval, RetrievedPassage
from headrace.store.payloads.step_payload import NUMBERED_FROM, PASSAGES, SEARCH
from headrace.workers.tasks.encoding import EncodeJob

_CHARS_A_TOKEN = 4


def searched_job(model: EmbedModel, claim: Claim, db: Database) -> EncodeJob:
    """Return the job of a step that searches. Its output raises as ``passages_of``."""
    payload = dict(claim.payload)
    asked, first = Retrieval.model_validate(payload.pop(SEARCH)), payload.pop(NUMBERED_FROM, None)
    job = model.read(payload)

    def output(vectors: Sequence[bytes]) -> dict[str, Any]:
        (vector,), words = vectors, payload["input"]["texts"][0]
        found = passages_of(db, claim.tenant_id, asked, unit_vector(vector), words)
        return job.output(vectors) | ({PASSAGES: found} if first is None else told(found, asked, first))

    return replace(job, output=output)


def passages_of(
    db: Database, tenant_id: str, asked: Retrieval, vector: tuple[float, ...], words: str
) -> list[dict[str, Any]]:
    """Return the passages that answer a question, the best first.

    Raises NotFound if a store is gone by now, CannotOpen, Unavailable.
    """
    options = asked.ranking_options
    least = (None if options is None else options.score_threshold) or 0.0
    best: dict[tuple[str, int], FoundPassage] = {}
    for store_id in asked.vector_store_ids:
        vector_stores.find(db, tenant_id, store_id)
        for one in search.search(db, tenant_id, _query(asked, store_id, vector, words)):
            key = (one.file_id, one.position)
            if key not in best or best[key].score < one.score:
                best[key] = one
    ordered = sorted(best.values(), key=lambda one: (-one.score, one.file_id, one.position))
    return [_stored(one) for one in ordered[: asked.max_num_results] if one.score >= least]


def told(found: Sequence[Mapping[str, Any]], asked: Retrieval, first: int) -> dict[str, Any]:
    """Return the text of passages for the model, numbered from ``first``, and those that are in it.

    ``max_context_tokens`` bounds the text, at four characters a token: a passage that does not fit is left out.
    """
    room = _CHARS_A_TOKEN * asked.max_context_tokens
    shown: list[Mapping[str, Any]] = []
    lines: list[str] = []
    for passage in found:
        numbered = {"number": first + len(shown), "filename": passage["filename"], "text": passage["text"]}
        line = json.dumps(numbered, ensure_ascii=False)
        if len(line) <= room:
            room -= len(line)
            lines.append(line)
            shown.append(passage)
    return {PASSAGES: shown, NUMBERED_FROM: first, "text": "\n".join(lines) or "Nothing was found."}


def _query(asked: Retrieval, store_id: str, vector: tuple[float, ...], words: str) -> Query:
    given = None if asked.ranking_options is None else asked.ranking_options.hybrid_search
    weights = given or HybridWeights(embedding_weight=1.0, text_weight=1.0)
    return Query(
        store_id,
        vector,
        words,
        asked.max_num_results,
        read_filter(asked.filters),
        vector_weight=weights.embedding_weight,
        word_weight=weights.text_weight,
    )


def _stored(found: FoundPassage) -> dict[str, Any]:
    passage = found.passage
    return RetrievedPassage(
        file_id=found.file_id,
        filename=found.filename,
        text=passage.text,
        score=found.score,
        place=PassagePlace(start=passage.start, end=passage.end, page=passage.page),
    ).model_dump(mode="json", exclude_none=True)
