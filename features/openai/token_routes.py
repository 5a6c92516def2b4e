"""Routes that turn texts into token ids and back, in vLLM's format. Nothing is stored and no worker is asked."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.features.openai.chat_request import ChatRequest, ChatTool, ChatTurn
from headrace.features.openai.chat_request import to_job as chat_job
from headrace.features.openai.request_fields import as_sent
from headrace.producer_api.access.auth import JobsWriter
from headrace.producer_api.http.job_options import refuse_near_misses, unsupported
from headrace.producer_api.http.requests import RuntimeOf, StrictJsonRoute
from headrace.producer_api.http.views import JsonResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import DOCUMENTED, from_validation
from headrace.prompts.tasks.generate import build_prompt
from headrace.prompts.tokenizer import Tokenizer
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.payloads.conversation import images_of
from headrace.store.payloads.job_payload import TokenId
from headrace.store.payloads.strict_model import Body, Text
from headrace.store.registry.models import ModelVersion
from headrace.store.tenants.api_keys import Principal

router = APIRouter(prefix="/v1", tags=["openai"], route_class=StrictJsonRoute, responses=DOCUMENTED)

_MAX_TOKENS = 262_144


class TokenizeRequest(Body):
    """The body of ``POST /v1/tokenize``: a prompt, or a conversation for the model's chat template."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "prompt": "a mill on the river"},
                {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}]},
            ]
        },
    )

    model: str
    prompt: Text | None = Field(None, description="a text without a chat template")
    messages: Annotated[tuple[ChatTurn, ...], Field(min_length=1)] | None = None
    tools: tuple[ChatTool, ...] | None = None
    add_special_tokens: bool | None = Field(
        None, description="add the tokens that the model expects around a prompt; a chat template writes its own"
    )
    return_token_strs: bool | None = Field(None, description="also answer with each token's text")


class Tokens(BaseModel):
    """The tokens of a text or conversation."""

    count: int = Field(description="number of tokens")
    max_model_len: int = Field(description="the model's context window in tokens")
    tokens: list[int] = Field(description="the ids")
    token_strs: list[str] | None = Field(None, description="the texts, with U+FFFD for a part of a character")


class DetokenizeRequest(Body):
    """The body of ``POST /v1/detokenize``."""

    model_config = ConfigDict(
        extra="allow", frozen=True, json_schema_extra={"examples": [{"model": "smollm2", "tokens": [81, 3498]}]}
    )

    model: str
    tokens: Annotated[
        tuple[Annotated[TokenId, Field(strict=True)], ...],
        Field(max_length=_MAX_TOKENS, description="ids of the model's vocabulary"),
    ]


class DetokenizedText(BaseModel):
    """The text of the tokens."""

    prompt: str = Field(description="the text, without special tokens")


@router.post("/tokenize", response_model=Tokens, summary="Tokens of a text or conversation")
async def tokenize(runtime: RuntimeOf, principal: JobsWriter, body: TokenizeRequest) -> Response:
    """Return the ids that the model would be given for a prompt, or for messages. Also served as `/tokenize`."""
    return JsonResponse(await run_in_threadpool(_tokens, runtime, principal, body))


@router.post("/detokenize", response_model=DetokenizedText, summary="Text of tokens")
async def detokenize(runtime: RuntimeOf, principal: JobsWriter, body: DetokenizeRequest) -> Response:
    """Return the text of token ids. Also served as `/detokenize`."""
    return JsonResponse(await run_in_threadpool(_text, runtime, principal, body))


def _tokens(runtime: Runtime, principal: Principal, body: TokenizeRequest) -> Tokens:
    version, tokenizer = _tokenizer(runtime, principal, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give exactly one of `prompt` and `messages`", param="prompt")
    if body.messages is None:
        refuse_near_misses(body)
        ids = tokenizer.encode(body.prompt or "", add_special=body.add_special_tokens is not False)
    else:
        if body.add_special_tokens:
            raise unsupported("`add_special_tokens` is for `prompt`: a chat template writes its own", "messages")
        ids = _of_chat(tokenizer, body)
    texts = [tokenizer.spelling(one).decode(errors="replace") for one in ids] if body.return_token_strs else None
    return Tokens(count=len(ids), max_model_len=version.context_window, tokens=ids, token_strs=texts)


def _of_chat(tokenizer: Tokenizer, body: TokenizeRequest) -> list[int]:
    sent: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"add_special_tokens", "return_token_strs"})
    try:
        chat = ChatRequest.model_validate(sent)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error
    job = chat_job(chat)
    if images_of(job.input):
        raise unsupported("`messages` have images, whose tokens only the model's server knows", "messages")
    try:
        return build_prompt(tokenizer, job.input)
    except HeadraceError as error:
        raise as_sent(error, chat) from error


def _text(runtime: Runtime, principal: Principal, body: DetokenizeRequest) -> DetokenizedText:
    refuse_near_misses(body)
    _, tokenizer = _tokenizer(runtime, principal, body.model)
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        raise InvalidRequest(
            f"`tokens` has the id {max(body.tokens)}, but this model's vocabulary ends at {tokenizer.vocab_size - 1}",
            param="tokens",
        )
    return DetokenizedText(prompt=tokenizer.decode(body.tokens))


def _tokenizer(runtime: Runtime, principal: Principal, model: str) -> tuple[ModelVersion, Tokenizer]:
    principal.check_model(model)
    version = runtime.catalog.resolve(model)
    if version.is_without_tokenizer:
        raise InvalidRequest("this model's tokens are known only to the server that runs it", param="model")
    return version, runtime.catalog.tokenizer(version)
