"""What a verification found, as it is stored with the version, and the golden answers of a registration."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from headrace.store.errors import InvalidRequest
from headrace.store.json_text import dump_json
from headrace.store.payloads.strict_model import Strict
from headrace.store.registry.quality_report import QualityReport


class GoldenAnswer(Strict):
    """A prompt of the self-test, as text, with the tokens that the model continues it with when it is greedy."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    tokens: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=64)]


class VerificationReport(BaseModel):
    """What a verification measured, on the worker that made it. A field without a value does not apply to the version.

    ``golden``: the answers were compared with those of the registration, or recorded because there were none.
    ``tokens_per_s`` is that of the self-test, a few short answers together: an indication.
    """

    # A later release may have written more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    worker: str = Field(description="the worker that verified the version")
    dtype: str | None = Field(default=None, description="the number format in which it computed")
    load_s: float | None = Field(default=None, description="seconds to check the files and load the weights")
    memory_bytes: int | None = Field(
        default=None, description="the most memory of the worker's process, without a GPU's"
    )
    context_tokens: int | None = Field(
        default=None, description="tokens that a request may have with the KV cache of this worker"
    )
    tokens_per_s: float | None = Field(default=None, description="tokens per second of the self-test")
    golden: Literal["matched", "recorded"] | None = Field(
        default=None, description="whether the answers were compared with golden ones, or only recorded"
    )
    answers: tuple[GoldenAnswer, ...] = Field(default=(), description="the answers of the self-test")
    server: str | None = Field(default=None, description="the inference server, as it describes itself")
    quality: QualityReport | None = Field(
        default=None, description="how far it is from its reference; null: it was not measured"
    )
    not_measured: str | None = Field(default=None, description="why its quality could not be measured")

    @field_validator("quality", mode="before")
    @classmethod
    def _without_older_forms(cls, value: Any) -> Any:
        """A report that an earlier release stored has other figures, and is not shown."""
        return None if isinstance(value, dict) and "reference_perplexity" not in value else value


_GOLDEN = TypeAdapter(Annotated[tuple[GoldenAnswer, ...], Field(min_length=1, max_length=16)])


def golden_answers(given: Any) -> tuple[GoldenAnswer, ...]:
    """Return the golden answers of a JSON value, as an operator gave it. Raises InvalidRequest with one sentence."""
    try:
        return _GOLDEN.validate_python(given, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "list"
        raise InvalidRequest(
            f'golden answers are a list of {{"prompt": "...", "tokens": [1, 2]}}: {place}: {first["msg"]}',
            param="golden",
        ) from None


def golden_file(path: Path) -> tuple[GoldenAnswer, ...]:
    """Return the golden answers of a JSON file. Raises InvalidRequest with one sentence."""
    try:
        return golden_answers(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read as JSON: {error}", param="golden") from error


def stored_golden(answers: Sequence[GoldenAnswer]) -> str | None:
    """Return golden answers as the registry stores them; None without any."""
    return dump_json([answer.model_dump(mode="json") for answer in answers]) if answers else None
