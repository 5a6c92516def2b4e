"""Retrieval: a request to generate text from the passages of vector stores, and the passages that were used."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from headrace.store.payloads.strict_model import Strict

DEFAULT_CONTEXT_TOKENS: Final = 2048

SEARCH_TASK: Final = "embed"
"""The task of a step that searches: the question's vector."""

SEARCH_STEP: Final = "{}:search"
"""The name of the step that searches for a step; no name of a caller has a colon."""


class HybridWeights(Strict):
    """How much each half of a search counts."""

    embedding_weight: float = Field(1.0, ge=0, le=1000, description="of the search by vectors")
    text_weight: float = Field(1.0, ge=0, le=1000, description="of the search by words")

    @model_validator(mode="after")
    def _one_counts(self) -> Self:
        if not (self.embedding_weight or self.text_weight):
            raise ValueError("one of `embedding_weight` and `text_weight` must be more than 0")
        return self


class RankingOptions(Strict):
    """How results are ranked."""

    ranker: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="`auto`, `none` or `default-…`: by fused ranks; or a rerank model, which orders the best ones"
    )
    score_threshold: float | None = Field(None, ge=0, le=1, description="results with a lower score are left out")
    hybrid_search: HybridWeights | None = Field(None, description="the weights of vectors and words; equal without it")

    @property
    def reranker(self) -> str | None:
        """The rerank model, None if the fused ranks are the order."""
        name = self.ranker
        return None if name is None or name in ("auto", "none") or name.startswith("default") else name


class Retrieval(Strict):
    """Vector stores that are searched with the user's last message; the best passages come before it."""

    vector_store_ids: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...], Field(min_length=1, max_length=8)
    ] = Field(description="the stores; all of one model version")
    max_num_results: int = Field(5, strict=True, ge=1, le=50, description="most passages")
    filters: dict[str, Any] | None = Field(None, description="on attributes of files, as in a search")
    ranking_options: RankingOptions | None = Field(
        None, description="as in a search, without a rerank model; the fused ranks without it"
    )
    max_context_tokens: int = Field(
        DEFAULT_CONTEXT_TOKENS,
        strict=True,
        ge=1,
        le=131_072,
        description="most tokens of the passages together; fewer where the context window leaves fewer",
    )


class PassagePlace(Strict):
    """Where a passage stands in its file: characters of the file's text, and the page from 1, where there are pages."""

    start: int = Field(description="its first character in the file's text")
    end: int = Field(description="the character behind its last")
    page: int | None = Field(None, description="its page, counted from 1; absent where there are no pages")


class FileCitation(Strict):
    """A passage that the model was given. ``index``: its number in the prompt, from 1."""

    type: Literal["file_citation"] = Field("file_citation", description="a passage of a file")
    index: int = Field(description="its number in the prompt, from 1")
    file_id: str = Field(description="its file")
    filename: str = Field(description="the name of its file")
    score: float = Field(description="of the search, from 0 to 1")
    place: PassagePlace = Field(description="where it stands in its file")


class RetrievedPassage(Strict):
    """A passage that a step found, as its output has it in ``passages``."""

    file_id: str
    filename: str
    text: str
    score: float
    place: PassagePlace
