"""The work of the task ``score``, for the models of rerank and embed: a number for each pair of texts."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from headrace.features.encoders.classifier_folder import ClassifierSettings
from headrace.features.encoders.embed.inputs import Embedder
from headrace.features.encoders.embed.model import EmbedModel
from headrace.features.encoders.encode_jobs import job_of, numbers_of
from headrace.features.encoders.fitted_inputs import cuts_of
from headrace.features.encoders.rerank.model import RerankModel
from headrace.features.encoders.score.inputs import score_pairs, score_texts
from headrace.features.encoders.score.task import SCORE, ScoreOutput, ScorePayload
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.payloads.job_payload import read_payload
from headrace.store.settings import Settings
from headrace.workers.tasks.encoding import EncodeJob, EncoderModel, ReadClaim, ServedPart


def read_pairs(tokenizer: Tokenizer, settings: ClassifierSettings, payload: Mapping[str, Any]) -> EncodeJob:
    """Return the job for a reranker, whose relevance score is the score."""
    asked = read_payload(ScorePayload, payload)
    inputs = score_pairs(tokenizer, settings, asked.input, truncate=asked.truncate)
    nums_cut = [one.num_cut for one in inputs]
    return job_of(inputs, lambda vectors: _output([numbers_of(vector)[0] for vector in vectors], nums_cut))


def read_texts(tokenizer: Tokenizer, embedder: Embedder, payload: Mapping[str, Any]) -> EncodeJob:
    """Return the job for an encoder: the score is the cosine of the two vectors."""
    asked = read_payload(ScorePayload, payload)
    tokens = score_texts(tokenizer, embedder, asked.input, truncate=asked.truncate)
    num_first = len(asked.input.text_1)

    def output(vectors: Sequence[bytes]) -> dict[str, Any]:
        numbers = [numbers_of(vector) for vector in vectors]
        first, second = numbers[:num_first], numbers[num_first:]
        cosines = [_cosine(first[index % num_first], other) for index, other in enumerate(second)]
        return _output(cosines, tokens.nums_cut)

    return EncodeJob(tokens.inputs, None, output)


def _output(scores: Sequence[float], nums_cut: Sequence[int]) -> dict[str, Any]:
    made = ScoreOutput(scores=tuple(scores), truncated=cuts_of(nums_cut))
    return made.model_dump(mode="json", exclude_none=True)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine, 0 for a vector without length."""
    lengths = sqrt(sum(number * number for number in one)) * sqrt(sum(number * number for number in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _reader(model: EncoderModel, _settings: Settings) -> ReadClaim | None:
    if isinstance(model, RerankModel):
        return lambda claim, _context: read_pairs(model.tokenizer, model.settings, claim.payload)
    if isinstance(model, EmbedModel) and (tokenizer := model.tokenizer) is not None:
        return lambda claim, _context: read_texts(tokenizer, model.embedder, claim.payload)
    return None


PART = ServedPart(lambda claim: claim.task == SCORE.name, _reader)
