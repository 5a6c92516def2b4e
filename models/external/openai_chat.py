"""The adapter for any server with OpenAI's chat completions: conversations in, text out.

    describe   /v1/models
    load       nothing, as the API has no such question: only whether the server answers
    generate   /v1/chat/completions, as a stream
    abort      by closing the connection

The server's tool calls are written into the text as a model of ``CALL_STYLE`` writes them, so that the readers of
answers and of streams find them there. So is reasoning that it sends apart from the answer, between ``THINK_TAGS``.
"""

import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from itertools import takewhile
from typing import Any

from headrace.models.engine.requests import FinishReason, Grammar
from headrace.models.external.server_client import ServerClient, error_of, parsed_answer, quoted
from headrace.models.external.upstream import (
    Capabilities,
    Piece,
    ServerInfo,
    ServerLoad,
    ServerLost,
    UpstreamFailed,
    UpstreamLost,
    UpstreamRefused,
    UpstreamRequest,
)
from headrace.prompts.answer_reader import THINK_TAGS
from headrace.prompts.tool_calls import HERMES_TAGS

_MODELS = "/v1/models"
_CHAT = "/v1/chat/completions"
_DONE = b"[DONE]"
_WINDOWS = ("max_model_len", "context_length", "context_window")
_NEW_LIMIT = "max_completion_tokens"


class OpenaiChatUpstream:
    """Implements ``models.external.upstream.Upstream``."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        continues: bool = False,
        ask_every_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ask_every_s``: how often an idle server is asked if it is there. Some count each question.

        ``continues``: the server has vLLM's ``continue_final_message``, and so the other fields that vLLM has added.
        """
        self._continues = self._has_priorities = continues
        self._http = ServerClient(url, api_key)
        self._clock = clock
        self._ask_every_s = ask_every_s
        self._asked_at = clock()
        self._cards: list[dict[str, Any]] = []
        self._models: tuple[str, ...] = ()
        self._limit = "max_tokens"  # the field's name; OpenAI's newer models have another

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do: what a request has shown that it cannot is left out from then on."""
        return Capabilities(
            token_ids=False,
            logprobs=False,
            grammars=frozenset({"json_schema"}),
            priorities=self._has_priorities,
            abort=False,
            load=False,
            continues_text=self._continues,
        )

    async def describe(self) -> ServerInfo:
        """Ask the server for its models."""
        self._cards = models = await self._ask_models()
        self._asked_at = self._clock()
        self._models = tuple(str(one["id"]) for one in models)
        windows = [one[name] for one in models for name in _WINDOWS if isinstance(one.get(name), int)]
        return ServerInfo(
            engine_version=None,
            models=self._models,
            context_window=windows[0] if len(models) == 1 and windows else None,
        )

    async def _ask_models(self) -> list[dict[str, Any]]:
        """Ask for the models, as ``vllm.VllmUpstream``: a router may ask a server that has died."""
        try:
            self._cards = (await self._http.get_json(_MODELS)).get("data") or []
        except ServerLost:
            if not self._cards:
                raise
            token = {"messages": [{"role": "user", "content": "a"}], self._limit: 1}
            await self._http.post(_CHAT, {"model": self._cards[0]["id"], **token})
        return self._cards

    async def load(self) -> ServerLoad:
        """Ask now and then if the server is there. While it wants no requests, it counts as having one waiting."""
        if self._http.is_paused:
            return ServerLoad(running=0, waiting=1)
        if self._clock() - self._asked_at > self._ask_every_s:
            before = self._models
            if (await self.describe()).models != before:
                raise UpstreamLost("the models of the inference server have changed")
        return ServerLoad(running=0, waiting=0)

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        """Send a request and yield its output."""
        try:
            async with aclosing(self._generate(request)) as pieces:
                async for piece in pieces:
                    yield piece
        except UpstreamRefused as error:
            self._adapt(request, error)
            async with aclosing(self._generate(request)) as pieces:
                async for piece in pieces:
                    yield piece

    def _adapt(self, request: UpstreamRequest, error: UpstreamRefused) -> None:
        """Leave out what the server has refused, or raise the error."""
        said = str(error)
        # "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        if self._limit in said and _NEW_LIMIT in said and self._limit != _NEW_LIMIT:
            self._limit = _NEW_LIMIT
        elif self._has_priorities and request.priority and "priority" in said.lower():
            self._has_priorities = False
        elif request.emitted_text:
            self._continues = False  # the job's next attempt starts anew
            raise UpstreamLost(f"the inference server does not go on with an answer: {said}") from error
        else:
            raise error

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Do nothing: the connections are closed already, and the API knows no ids."""

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def _generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        answer = _Answer(_split(request.emitted_text)[1])
        async with aclosing(self._http.stream(_CHAT, self._body(request), request.headers)) as events:
            async for data in events:
                if data != _DONE:
                    yield answer.take(parsed_answer(data))
                elif answer.finish is not None:
                    yield answer.last()
        if answer.finish is not None:
            yield answer.last()  # of a server that does not write [DONE]

    def _body(self, request: UpstreamRequest) -> dict[str, object]:
        sampling = request.sampling
        begun, space = _split(request.emitted_text)
        body: dict[str, object] = {
            **request.messages,
            "model": request.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._limit: sampling.max_tokens + bool(space),
        }
        for name, off in (("presence_penalty", 0.0), ("frequency_penalty", 0.0), ("seed", None)):
            value = getattr(sampling, name)
            if value != off:
                body[name] = value
        if self._continues:
            # Chunks may have several tokens, and an attempt that goes on has as many fewer.
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        if self._has_priorities and request.priority:
            body["priority"] = request.priority
        if begun:
            turns: Any = request.messages["messages"]
            body["messages"] = [*turns, {"role": "assistant", "content": begun}]
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
        if sampling.grammar is not None:
            body["response_format"] = _response_format(sampling.grammar)
        return body


def _split(text: str) -> tuple[str, str]:
    """Return a begun answer without the white space at its end, and that space.

    Some chat templates cut it off, so the server is to write it again. It is taken for one token.
    """
    begun = text.rstrip()
    return begun, text[len(begun) :]


class _Answer:
    """One answer as it comes. Without the server's usage, a chunk with text counts as one token.

    ``repeated``: the white space with which a server begins that goes on with an answer; it was shown before.
    """

    def __init__(self, repeated: str = "") -> None:
        self._repeated = repeated
        self._num_repeated = bool(repeated)
        self.finish: FinishReason | None = None
        self._calls = _CallWriter()
        self._num_chunks = 0
        self._usage: Mapping[str, Any] = {}
        self._is_reasoning: bool | None = None  # None before its first text

    def take(self, chunk: Mapping[str, Any]) -> Piece:
        """Return what a chunk adds: nothing in those with the role or the usage."""
        if chunk.get("error"):
            raise _error_in_stream(chunk["error"])
        self._usage = chunk.get("usage") or self._usage
        text, num_reasoning = "", 0
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text += self._reasoning(delta)
            num_reasoning = len(text)
            text += self._new(self._calls.add(delta))
            if choice.get("finish_reason"):
                self.finish = _finish(choice["finish_reason"])
        self._num_chunks += bool(text)
        return Piece(text=text, num_reasoning=num_reasoning, num_output_tokens=self._num_tokens)

    @property
    def _num_tokens(self) -> int:
        counted = self._usage.get("completion_tokens")
        return self._num_chunks if counted is None else max(0, counted - self._num_repeated)

    def _new(self, text: str) -> str:
        """Return the text without what was shown before."""
        pairs = zip(text, self._repeated, strict=False)
        num_same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        is_over = num_same < len(text)
        self._repeated = "" if is_over else self._repeated[num_same:]
        return text[num_same:]

    def _reasoning(self, delta: Mapping[str, Any]) -> str:
        """Return the reasoning of a delta, with its marks. What comes after the answer has begun is left out."""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        has_answer = bool(delta.get("content") or delta.get("refusal") or delta.get("tool_calls"))
        written = ""
        if reasoning and isinstance(reasoning, str) and self._is_reasoning is not False:
            written = reasoning if self._is_reasoning else THINK_TAGS.opening + reasoning
            self._is_reasoning = True
        if has_answer:
            written += THINK_TAGS.closing if self._is_reasoning else ""
            self._is_reasoning = False
        return written

    def last(self) -> Piece:
        """Return the last piece."""
        finish, self.finish = self.finish, None
        details = self._usage.get("prompt_tokens_details") or {}
        num_prompt = self._usage.get("prompt_tokens")
        return Piece(
            text=self._calls.close(),
            finish=finish,
            num_prompt_tokens=None if num_prompt is None else num_prompt + self._num_repeated,
            num_cached_tokens=details.get("cached_tokens"),
            num_output_tokens=self._num_tokens,
            num_reasoning_tokens=(self._usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
        )


class _CallWriter:
    """Writes the tool calls of deltas as text. Their arguments come in pieces, one call after the other."""

    def __init__(self) -> None:
        self._open: tuple[object, object] | None = None  # index and id of the call that has begun
        self._has_arguments = False

    def add(self, delta: Mapping[str, Any]) -> str:
        """Return the text of a delta."""
        content = delta.get("content") or delta.get("refusal") or ""
        written = self.close() + content if content else ""
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            key = call.get("index", 0), call.get("id")
            if function.get("name") and not self._is_open(key):
                written += self.close() + f'{HERMES_TAGS[0]}\n{{"name": {json.dumps(function["name"])}, "arguments": '
                self._open = key
            if function.get("arguments"):
                if not self._is_open(key):
                    raise UpstreamFailed("the inference server mixed the arguments of several tool calls")
                written += function["arguments"]
                self._has_arguments = True
        return written

    def close(self) -> str:
        """End the call that has begun."""
        if self._open is None:
            return ""
        end = ("" if self._has_arguments else "{}") + f"}}\n{HERMES_TAGS[1]}"
        self._open, self._has_arguments = None, False
        return end

    def _is_open(self, key: tuple[object, object]) -> bool:
        """Return True if the call has begun. Only its first piece needs an id, and some servers count none."""
        return self._open is not None and self._open[0] == key[0] and key[1] in {None, "", self._open[1]}


def _finish(reason: str) -> FinishReason:
    """Return why the answer ends; servers have many words for a stop."""
    if reason == "content_filter":
        raise UpstreamRefused("the inference server's content filter has ended the answer")
    if reason in {"error", "abort"}:
        raise UpstreamFailed("the inference server has failed in the middle of the answer")
    return FinishReason.LENGTH if reason in {"length", "max_tokens"} else FinishReason.STOP


def _error_in_stream(error: object) -> Exception:
    code = error.get("code") if isinstance(error, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return error_of(code if isinstance(code, int) else 500, quoted(str(message)))


def _response_format(grammar: Grammar) -> dict[str, object]:
    schema = json.loads(grammar.text)
    if schema == {"type": "object"}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
