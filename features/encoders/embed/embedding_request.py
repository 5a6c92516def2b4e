"""The embeddings request, its conversion to a job, and the answer with the job's vectors.

The bounds of values are in ``task`` and the model's files: a validation error on a job field is renamed to the field of
the request. No HTTP and no I/O.
"""

import re
import struct
from base64 import b64decode
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema

from headrace.features.encoders.embed.task import MAX_EMBED_INPUTS, EmbedRequest
from headrace.features.encoders.foreign_encoding import ENCODING_INSTEAD, FOREIGN_ENCODING
from headrace.producer_api.http.job_options import (
    CLASSES,
    JOB_FIELDS,
    JobOptions,
    MetadataText,
    ServiceTier,
    job_fields,
    refuse_near_misses,
    refuse_unsupported,
)
from headrace.producer_api.server.errors import from_validation
from headrace.producer_api.streaming.answers import answer_of
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.jobs.jobs import Job
from headrace.store.payloads.conversation import MAX_IMAGES
from headrace.store.payloads.strict_model import Body

_MANY = {"type": "array", "minItems": 1, "maxItems": MAX_EMBED_INPUTS}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_INPUT_SCHEMA: dict[str, Any] = {
    "title": "Input",
    "description": 'a text, texts, the token ids of one input, those of several, or images as `{"image": …}`',
    "anyOf": [
        {"type": "string", "minLength": 1},
        _MANY | {"items": {"type": "string", "minLength": 1}},
        _IDS,
        _MANY | {"items": _IDS},
        {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": {"type": "object", "required": ["image"]}},
    ],
}

Input = Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)]


class EmbeddingRequest(Body):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "minilm", "input": "a mill on the river"},
                {"model": "minilm", "input": ["a mill on the river", "bread"], "encoding_format": "base64"},
                {"model": "clip", "input": [{"image": "https://example.com/mill.jpg"}]},
            ]
        },
    )

    model: str
    input: Input
    dimensions: int | None = Field(None, description="fewer than the model's, if the model was trained for that")
    own_token_ids: bool = Field(
        False, description="an extension: the token ids of `input` are of this model's own vocabulary"
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="an extension: with `auto` an input over the context window is cut at its end"
    )
    truncate: bool | Literal["NONE", "END", "none", "end"] | None = Field(
        None, description="the same by the name of other servers: true or `end`"
    )
    prompt_name: str | None = Field(None, description="a prompt of the model, by its name; it is put before each text")
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, description="your end user; usage can be grouped by it")
    safety_identifier: str | None = Field(None, description="the newer name of `user`; wins over it")
    metadata: dict[str, MetadataText] | None = None
    service_tier: ServiceTier | None = None
    job: JobOptions | None = None


# The vector of another tokenizer's ids is one of another text, and nothing in the answer would show it.
_FOREIGN_IDS = (
    "`input` has token ids, and clients make them with the tokenizer of OpenAI's models: send texts (LangChain's "
    "OpenAIEmbeddings: `check_embedding_ctx_length=False`), or set `own_token_ids` to true if the ids are of this "
    "model's own vocabulary"
)


def to_job(request: EmbeddingRequest) -> EmbedRequest:
    """Return the job for the request; raise InvalidRequest that names the request's field."""
    refuse_unsupported(request, FOREIGN_ENCODING, ENCODING_INSTEAD)
    refuse_near_misses(request, FOREIGN_ENCODING)
    body = {
        "task": "embed",
        "model": request.model,
        "input": _input(request.input),
        "truncate": request.truncation == "auto" or request.truncate in (True, "END", "end"),
        "dimensions": request.dimensions,
        "prompt_name": request.prompt_name,
        "service_class": CLASSES[request.service_tier],
        "metadata": request.metadata or {},
        "user": request.safety_identifier or request.user or None,
        **job_fields(request.job),
    }
    try:
        order = EmbedRequest.model_validate(body)
    except ValidationError as error:
        raise as_sent(from_validation(error.errors(include_input=False)), request) from error
    if order.input.token_ids is not None and not request.own_token_ids:
        raise InvalidRequest(_FOREIGN_IDS, param="input")
    return order


def _input(given: object) -> dict[str, object]:
    """Return OpenAI's four forms of ``input``, or images, as the native one; raise InvalidRequest for any other."""
    if isinstance(given, str):
        return {"texts": [given]}
    if not isinstance(given, list) or not given:
        raise InvalidRequest(
            "`input` is a text, a list of texts, a list of token ids, or a list of such lists, and not empty",
            param="input",
        )
    if _is_ids(given):
        return {"token_ids": [given]}
    if isinstance(given[0], dict):
        return {"images": [_image(one, index) for index, one in enumerate(given)]}
    request = str if isinstance(given[0], str) else list
    for index, one in enumerate(given):
        if not isinstance(one, request) or (isinstance(one, list) and not _is_ids(one)):
            what = "text" if request is str else "list of token ids"
            raise InvalidRequest(f"`input[{index}]` must be a {what}, like the first entry", param=f"input[{index}]")
    return {"texts" if request is str else "token_ids": given}


def _image(given: object, index: int) -> object:
    """Return what an object with an image stands for, as Jina's API writes it."""
    if not isinstance(given, dict) or given.keys() != {"image"}:
        name = f"input[{index}]"
        if isinstance(given, dict) and "text" in given:
            raise InvalidRequest(
                f"`{name}` is an object with a text: send the text itself, and images in a request of their own",
                param=name,
            )
        raise InvalidRequest(
            f'`{name}` must be an image as `{{"image": "https://…"}}`, like the first entry', param=name
        )
    return given["image"]


def _is_ids(given: list[object]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in given)


_NATIVE = re.compile(r"input\.(?:texts|token_ids|images)")
_FIRST = re.compile(r"^input\[0\]")


def as_sent(error: HeadraceError, request: EmbeddingRequest) -> HeadraceError:
    """Rename the job field in an error to the request's field."""
    if error.param is None:
        return error
    name = f"job.{error.param}" if error.param.partition(".")[0] in JOB_FIELDS else _NATIVE.sub("input", error.param)
    if isinstance(request.input, str) or (isinstance(request.input, list) and _is_ids(request.input)):
        name = _FIRST.sub("input", name)
    error.message = error.message.replace(f"`{error.param}`", f"`{name}`")
    error.param = name
    return error


def embeddings_answer(job: Job, encoding_format: Literal["float", "base64"]) -> dict[str, Any]:
    """Return the vectors of a succeeded job; raise JobUnanswered for any other."""
    output = answer_of(job)
    vectors = output["embeddings"]
    tokens = int((job.usage or {}).get("input_tokens", job.input_tokens))
    told = vectors if encoding_format == "base64" else [_numbers(vector) for vector in vectors]
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(told) if one],
        "model": f"{job.model}@{job.model_version}",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        **{name: output[name] for name in ("truncated", "failed") if output.get(name)},
    }


def _numbers(vector: str) -> tuple[float, ...]:
    packed = b64decode(vector)
    return struct.unpack(f"<{len(packed) // 4}f", packed)
