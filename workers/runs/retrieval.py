"""The two halves of retrieval in a worker: the search at the end of the step that made the vector, and the passages.

    step answer:search   vector of the question ──▶ search ──▶ output.passages, stored with the end of the step
    step answer          output.passages ──▶ the tenant's policy ──▶ budget ──▶ prompt ──▶ answer, with annotations

What was found is stored, so a second attempt at the answer has the prompt of the first.
"""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from headrace.policy.policies import Policy
from headrace.prompts.documents.passage_block import with_passages
from headrace.prompts.tasks.generate import DEFAULT_MAX_TOKENS, count_tokens
from headrace.prompts.tasks.task_inputs import InputModel
from headrace.store.db.database import Database
from headrace.store.jobs.claims import Claim, Finish
from headrace.store.payloads.job_payload import PinnedPolicy
from headrace.store.payloads.retrieval import (
    SEARCH_TASK,
    FileCitation,
    HybridWeights,
    PassagePlace,
    Retrieval,
    RetrievedPassage,
)
from headrace.store.payloads.step_payload import NUMBERED_FROM, PASSAGES
from headrace.store.retrieval import search, vector_stores
from headrace.store.retrieval.attribute_filters import read_filter
from headrace.store.retrieval.passages import unit_vector
from headrace.store.retrieval.search import FoundPassage, Query
from headrace.store.schema.job_states import JobState
from headrace.store.tasks.generate import GenerateInput, GenerateRequest
from headrace.workers.runs.document_policy import OF_PASSAGES, policed_texts

_KEY_CHARS = 12
_CHARS_A_TOKEN = 4


def with_found(db: Database, claim: Claim, wanted: Mapping[str, Any], finish: Finish) -> Finish:
    """Return the end of a step that made the vector of a question, with the passages that answer it in its output.

    Raises NotFound if a store is gone by now, CannotOpen, Unavailable.
    """
    if finish.state is not JobState.SUCCEEDED or finish.output is None:
        return finish
    asked = Retrieval.model_validate(wanted)
    vector = unit_vector(b64decode(finish.output["embeddings"][0]))
    words = claim.payload["input"]["texts"][0]
    options = asked.ranking_options
    least = (None if options is None else options.score_threshold) or 0.0
    best: dict[tuple[str, int], FoundPassage] = {}
    for store_id in asked.vector_store_ids:
        vector_stores.find(db, claim.tenant_id, store_id)
        query = _query(asked, store_id, vector, words)
        for one in search.search(db, claim.tenant_id, query):
            key = (one.file_id, one.position)
            if key not in best or best[key].score < one.score:
                best[key] = one
    ordered = sorted(best.values(), key=lambda one: (-one.score, one.file_id, one.position))
    passages = [_stored(one) for one in ordered[: asked.max_num_results] if one.score >= least]
    return replace(finish, output={**finish.output, PASSAGES: passages})


def with_text(finish: Finish, wanted: Mapping[str, Any], first: int) -> Finish:
    """Return the end of a call of ``file_search`` with the text for the model: its passages, numbered from ``first``.

    ``max_context_tokens`` bounds the text, at four characters a token: a passage that does not fit is left out. The
    output keeps the passages of the text alone.
    """
    if finish.state is not JobState.SUCCEEDED or finish.output is None:
        return finish
    room = _CHARS_A_TOKEN * Retrieval.model_validate(wanted).max_context_tokens
    shown: list[Mapping[str, Any]] = []
    lines: list[str] = []
    for passage in finish.output[PASSAGES]:
        told = {"number": first + len(shown), "filename": passage["filename"], "text": passage["text"]}
        line = json.dumps(told, ensure_ascii=False)
        if len(line) <= room:
            room -= len(line)
            lines.append(line)
            shown.append(passage)
    text = "\n".join(lines) or "Nothing was found."
    return replace(finish, output={**finish.output, PASSAGES: shown, NUMBERED_FROM: first, "text": text})


def is_search(step: Mapping[str, Any]) -> bool:
    """Return True for the ``task`` and ``output`` of a call of ``file_search``."""
    return bool(step["task"] == SEARCH_TASK) and NUMBERED_FROM in step["output"]


def cited(outputs: Mapping[str, Mapping[str, Any]]) -> tuple[FileCitation, ...] | None:
    """Return the passages of the calls of ``file_search`` among these outputs; None if there are none."""
    found = [step["output"] for step in outputs.values() if is_search(step)]
    if not found:
        return None
    cites = [
        FileCitation(index=number, **{name: one[name] for name in ("file_id", "filename", "score", "place")})
        for output in found
        for number, one in enumerate(output[PASSAGES], output[NUMBERED_FROM])
    ]
    return tuple(sorted(cites, key=lambda one: one.index))


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


def in_context(
    claim: Claim,
    request: GenerateRequest,
    found: Sequence[Mapping[str, Any]],
    model: InputModel,
    policy: tuple[Policy, PinnedPolicy] | None,
) -> tuple[GenerateRequest, tuple[FileCitation, ...]]:
    """Return the request with the passages that its budget has room for, and what they are. Raises InvalidRequest.

    The budget is ``max_context_tokens``, or what the question and the answer leave of the context window.
    """
    if request.retrieval is None:
        return request, ()
    passages = [RetrievedPassage.model_validate(one) for one in found]
    if policy is not None and passages:
        passages = _policed(*policy, passages)
    without = count_tokens(request, model)
    reserved = request.sampling.max_tokens or min(DEFAULT_MAX_TOKENS, model.window // 4)
    most = min(without + request.retrieval.max_context_tokens, model.window - reserved)

    def fits(source: GenerateInput) -> bool:
        return count_tokens(request.model_copy(update={"input": source}), model) <= most

    key = sha256(claim.job_id.encode()).hexdigest()[:_KEY_CHARS]
    source, citations = with_passages(request.input, passages, key, fits)
    return request.model_copy(update={"input": source}), citations


def _policed(policy: Policy, pinned: PinnedPolicy, passages: Sequence[RetrievedPassage]) -> list[RetrievedPassage]:
    """Return the passages as the policy lets the model read them. Values that are replaced here are not restored."""
    texts = [text for one in passages for text in (one.filename, one.text)]
    done = policed_texts(policy, pinned, texts, "the passages that were found", after=OF_PASSAGES)
    return [
        one.model_copy(update={"filename": name, "text": text})
        for one, name, text in zip(passages, done[::2], done[1::2], strict=True)
    ]
