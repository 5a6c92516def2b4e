"""The engine of a model version: Headrace's own, or an inference server that the operator runs or a worker starts.

A version says which server may run its jobs, and what that server must run. A worker compares the server's own
description with it before it takes a job (``models.external.server_check``).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator

from headrace.store.errors import InvalidRequest, SettingsError
from headrace.store.payloads.strict_model import Strict

Modality = Literal["images"]
"""What a server takes beside text."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]+$")]


class EngineKind(StrEnum):
    """What runs a version. Each kind but ``native`` is also the version's ``runner``."""

    NATIVE = "native"
    VLLM = "vllm"
    SGLANG = "sglang"
    OPENAI = "openai"  # any server with OpenAI's chat completions: no token ids


SERVER_ADVICE = "vLLM may run it: register it with `--engine vllm` (docs/engines.md)"
"""The end of a refusal of a model that Headrace's own engine does not run."""

EXTERNAL_KINDS = tuple(kind for kind in EngineKind if kind is not EngineKind.NATIVE)

_OWN: Mapping[EngineKind, frozenset[str]] = {
    EngineKind.VLLM: frozenset({"--model", "--host", "--port", "--served-model-name", "--uds", "--api-key"}),
    EngineKind.SGLANG: frozenset({"--model-path", "--host", "--port", "--served-model-name", "--api-key"}),
}
"""The arguments that the worker gives: the operator's would make it ask another server."""


class EngineSpec(Strict):
    """The engine of a version. None: not compared with what the server says of itself.

    ``url``: the address of the operator's server, without ``/v1``; None: each worker starts a server of its own.
    ``served_model``: the base model's name in the server. ``adapter``: the LoRA adapter that requests name instead.
    ``context_window``: the server must take at least as many tokens, prompt and output together.
    ``batch_invariant``: the server must compute each answer independently of the others in its batch.
    ``accepts``: what requests may have beside text; only of a server of chat completions.
    ``continues``: the server has vLLM's ``continue_final_message``; only of a server of chat completions.
    ``router``: several servers answer at the address, by turns; only vLLM's.
    ``weights_digest``: the digest of the folder on which workers start the server (``models.families.model_folder``).
    """

    kind: EngineKind = EngineKind.NATIVE
    url: str | None = None
    served_model: Name | None = None
    adapter: Name | None = None
    revision: Name | None = None
    quantization: Name | None = None
    context_window: Annotated[int, Field(ge=1)] | None = None
    batch_invariant: bool = False
    accepts: tuple[Modality, ...] | None = None
    continues: Literal[True] | None = None
    router: Literal[True] | None = None
    weights_digest: str | None = None

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)

    @field_validator("accepts")
    @classmethod
    def _is_passed_on(cls, value: tuple[Modality, ...] | None, info: ValidationInfo) -> tuple[Modality, ...] | None:
        if value and info.data.get("kind") is not EngineKind.OPENAI:
            raise ValueError(
                "images go to a server by its chat completions: register it with the engine openai, which vLLM and "
                "SGLang serve too"
            )
        return value or None

    @field_validator("continues")
    @classmethod
    def _goes_by_text(cls, value: Literal[True] | None, info: ValidationInfo) -> Literal[True] | None:
        if value and info.data.get("kind") is not EngineKind.OPENAI:
            raise ValueError("the engines vllm and sglang go on by token ids: leave it out")
        return value

    @field_validator("router")
    @classmethod
    def _has_many_servers(cls, value: Literal[True] | None, info: ValidationInfo) -> Literal[True] | None:
        if value and (info.data.get("kind") is not EngineKind.VLLM or info.data.get("url") is None):
            raise ValueError("it is for the address of a router with the engine vllm; with openai leave it out")
        return value

    @property
    def after_a_loss(self) -> Literal["goes on", "starts anew"]:
        """What an answer does whose server or worker is lost; some requests start anew on every server."""
        return "starts anew" if self.kind is EngineKind.OPENAI and not self.continues else "goes on"

    @property
    def takes_images(self) -> bool:
        """True if messages may have images."""
        return "images" in (self.accepts or ())

    @property
    def is_external(self) -> bool:
        """True if an inference server runs the version."""
        return self.kind is not EngineKind.NATIVE

    @property
    def audited(self) -> dict[str, object]:
        """What the audit log has of it: nothing of Headrace's own engine."""
        return {"engine": self.model_dump(mode="json", exclude_none=True)} if self.is_external else {}

    @property
    def request_model(self) -> str:
        """The name of the model in requests to the server."""
        return self.adapter or self.served_model or ""

    def identity(self) -> dict[str, object]:
        """Return what makes one version differ from another: everything but the address."""
        return self.model_dump(mode="json", exclude={"url"}, exclude_none=True)


NATIVE = EngineSpec()


def engine_spec(given: Mapping[str, object]) -> EngineSpec:
    """Return the engine of these values, as an operator gave them. Raises InvalidRequest with one sentence."""
    try:
        return EngineSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"the engine's {name.replace('_', ' ')}: {said}", param=name) from None


def engine_digest(engine: EngineSpec, files: Mapping[str, str]) -> str:
    """Return the digest of a version that a server runs: of what the server must run, and of the files' digests."""
    return hashlib.sha256(json.dumps([engine.identity(), dict(files)], sort_keys=True).encode()).hexdigest()


def _address(value: str) -> str:
    """Return the address without a slash at its end. Private addresses are allowed: the operator gives them."""
    example = "it is like http://host:8000"
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname or ""
        if ":" in host:
            IPv6Address(host.partition("%")[0])
    except ValueError as error:
        raise ValueError(f"{error}; {example}") from None
    if parts.scheme not in {"http", "https"} or not host or any(char.isspace() for char in value):
        raise ValueError(example)
    if port == 0:
        raise ValueError(f"the port is 1 to 65535; {example}")
    if parts.username or parts.password:
        raise ValueError("a password in it would be stored and logged: set HEADRACE_ENGINE_API_KEY for the worker")
    if parts.query or parts.fragment:
        raise ValueError(f"it has no ? and no #; {example}")
    path = parts.path.rstrip("/")
    if path.rpartition("/")[2] == "v1":
        raise ValueError(f"leave out /v1; {example}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def check_server_arguments(kind: EngineKind, arguments: Sequence[str]) -> None:
    """Raise SettingsError if a worker cannot start such a server, or gives one of the arguments itself."""
    if kind not in _OWN:
        raise SettingsError(f"a worker cannot start a server of the kind {kind.value}: register it with its --url")
    stray = sorted({name for word in arguments if (name := word.partition("=")[0]) in _OWN[kind]})
    if stray:
        raise SettingsError(f"the worker gives {', '.join(stray)} itself: leave it out")
