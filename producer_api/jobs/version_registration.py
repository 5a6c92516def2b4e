"""The body that registers a version over HTTP, and what is registered for it.

The API has no model folders. So a new version has the files of one that the registry knows, in another number format
or with another engine, or is a chat server, which needs no files.
"""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace.store.calls.addresses import check_server_url, is_server_address
from headrace.store.calls.ssrf_guard import resolve
from headrace.store.errors import Conflict, InvalidRequest
from headrace.store.payloads.prompt_reference import PromptReference
from headrace.store.payloads.strict_model import Body
from headrace.store.registry.engine_spec import EngineKind, EngineSpec, Modality, engine_digest, engine_spec
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.registry.number_formats import NumberFormat
from headrace.store.registry.verification_report import GoldenAnswer


class VersionEngine(Body):
    """The inference server that runs a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vllm", "sglang", "openai"] = Field(description="what the server is")
    url: str = Field(min_length=1, max_length=2000, description="its address, such as `http://host:8000`, without /v1")
    served_model: str | None = Field(default=None, description="the model's name in the server; by default this one")
    adapter: str | None = Field(default=None, description="the server's LoRA adapter to which requests go")
    revision: str | None = Field(default=None, description="the revision that the server must have")
    quantization: str | None = Field(default=None, description="the quantization that the server must have")
    context_window: int | None = Field(default=None, ge=1, le=2**31 - 1, description="tokens that it must take")
    batch_invariant: bool = Field(default=False, description="it must compute each answer as if it were alone")
    accepts: tuple[Modality, ...] | None = Field(
        default=None, max_length=1, description="of the kind `openai`: what its model takes beside text; null: nothing"
    )


class VersionRequest(BaseModel):
    """A new version of a model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"files_of": "smollm2@1", "dtype": "int8"},
                {"files_of": "smollm2@1", "prompt": {"id": "guide", "version": 2}},
                {"files_of": "smollm2@1", "engine": {"kind": "vllm", "url": "http://vllm:8000"}},
            ]
        },
    )

    files_of: str | None = Field(
        default=None,
        max_length=200,
        description="a version, `name@1`, whose files the new one has; null: a chat server",
    )
    engine: VersionEngine | None = Field(default=None, description="the server that runs it; null: Headrace's engine")
    dtype: Literal["auto"] | NumberFormat = Field(
        default="auto",
        description="the number format of Headrace's engine; other than `auto`: a worker measures the distance from "
        "`files_of`",
    )
    golden: list[GoldenAnswer] = Field(
        default_factory=list,
        max_length=16,
        description="prompts with the tokens that the model must answer when it is verified",
    )
    prompt: PromptReference | None = Field(
        default=None,
        description="a prompt of this organization, whose messages come before those of each request without a "
        "template of its own; the version keeps a copy. Left out: that of `files_of`; null: none",
    )

    @field_validator("files_of")
    @classmethod
    def _is_a_version(cls, value: str | None) -> str | None:
        if value is not None and not value.rpartition("@")[2].isdecimal():
            raise ValueError("name a version by its number, such as smollm2@1")
        return value


def new_version(model: str, body: VersionRequest, files_of: ModelVersion | None) -> dict[str, Any]:
    """Return the arguments of ``register_version`` but the template. Blocks. Raises InvalidRequest, Conflict."""
    if body.prompt is not None and files_of is not None and not files_of.spec.has_sampling:
        raise InvalidRequest("only a model that generates text has a default template", param="prompt")
    if body.engine is None and files_of is not None and _is_template_alone(model, body, files_of):
        return _as_it_is(files_of)
    if body.engine is None:
        return _native(model, body, files_of)
    check_server_url(body.engine.url)
    _check_name(body.engine.url)
    spec = engine_spec({"served_model": model, **body.engine.model_dump(exclude_none=True)})
    return _served(model, body, files_of, spec)


def _check_name(url: str) -> None:
    """Raise InvalidRequest if the host's name now stands for an address at which no inference server can be.

    Only the workers' network may know the name, and it may stand for another address later: that is not noticed.
    """
    parts = urlsplit(url)
    try:
        found = resolve(parts.hostname or "", parts.port or 80)
    except OSError:
        return
    if refused := [address for address in found if not is_server_address(address)]:
        raise InvalidRequest(f"the engine's url: {parts.hostname} is {refused[0]}, which is no server's", param="url")


def _is_template_alone(model: str, body: VersionRequest, files_of: ModelVersion) -> bool:
    """Return True if the new version differs from ``files_of``, of the same model, in nothing but its template."""
    given = body.model_fields_set
    return "prompt" in given and not given & {"dtype", "golden"} and files_of.model == model


def _as_it_is(files_of: ModelVersion) -> dict[str, Any]:
    if files_of.base is not None and not files_of.shares_weights:
        raise Conflict("files_of is a LoRA adapter, which has no default template", param="files_of")
    return {
        "model": files_of.model,
        "runner": files_of.runner,
        "source": files_of.source,
        "digest": files_of.digest,
        "dtype": files_of.dtype,
        "context_window": files_of.context_window,
        "kept_files": files_of.files,
        "engine": files_of.engine,
        "quantized_from": files_of.quantized_from,
    }


def _native(model: str, body: VersionRequest, files_of: ModelVersion | None) -> dict[str, Any]:
    if files_of is None:
        raise InvalidRequest(
            "give files_of, a version whose files the new one has, or engine, a server; a folder is registered on its "
            "machine: `headrace register NAME FOLDER`",
            param="files_of",
        )
    if files_of.is_fake or files_of.engine.is_external or (files_of.base is not None and not files_of.shares_weights):
        raise Conflict(
            "files_of names no version with weights of its own that Headrace's engine runs", param="files_of"
        )
    if body.golden and not files_of.spec.has_sampling:
        raise InvalidRequest("only a model that generates text has golden answers", param="golden")
    original = files_of.base or queue_name(files_of.model, files_of.version)
    return {
        "model": model,
        "runner": files_of.runner,
        "source": files_of.source,
        "digest": files_of.digest,
        "dtype": body.dtype,
        "context_window": files_of.context_window,
        "kept_files": files_of.files,
        "golden": body.golden,
        "quantized_from": None if body.dtype == "auto" else original,
    }


def _served(model: str, body: VersionRequest, files_of: ModelVersion | None, spec: EngineSpec) -> dict[str, Any]:
    if body.dtype != "auto" or body.golden:
        raise InvalidRequest("the server decides its number format and its answers: leave out dtype and golden")
    files = {} if files_of is None else files_of.files
    if "tokenizer.json" not in files and spec.kind is not EngineKind.OPENAI:
        raise InvalidRequest("give files_of, a version that has the model's tokenizer", param="files_of")
    window = spec.context_window or (files_of and files_of.context_window)
    if window is None:
        raise InvalidRequest("give engine.context_window, the tokens that the server takes", param="engine")
    return {
        "model": model,
        "runner": spec.kind.value,
        "source": spec.url,
        "digest": engine_digest(spec, files),
        "dtype": "auto",
        "context_window": window,
        "kept_files": files,
        "engine": spec,
    }
