"""vLLM's HTTP API (0.32): tokens in, tokens out.

    with --enable-scale-out   POST /inference/v1/generate, and /inference/v1/abort_requests ends a request
    without                   POST /v1/completions with token ids; only a closed connection ends a request

    behind a router           as without; numbers would be those of any one server, so none are read

``describe`` finds out which of them the server has, and by two requests for one token each if it orders by priority and
follows llguidance's grammars: its API does not say so.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from math import inf
from typing import Any

import orjson
from prometheus_client.parser import text_string_to_metric_families

from headrace.models.engine.requests import EngineError, FinishReason, Grammar, SampledLogprobs, SamplingParams
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
    sent_logprobs,
)
from headrace.prompts.grammar import narrowed

_GENERATE = "/inference/v1/generate"
_ABORT = "/inference/v1/abort_requests"
_COMPLETIONS = "/v1/completions"
_MODELS = "/v1/models"
_OK = 200
_PREFIX = "generate-tokens-"  # what the server puts before the ids of requests to _GENERATE

_FIRST = -1  # the priority of the worker's own questions: before all jobs
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "repetition": FinishReason.STOP}
_MAX_LOGPROBS = 20  # the server's default limit
_LLGUIDANCE = "%llguidance {}\n"
"""The first line of a grammar that only llguidance reads: with the backend ``auto`` the server must choose it."""

_ANY_BACKEND = frozenset({"json_schema", "regex", "choice"})
_CONSTRAINTS = {"json_schema": "json", "regex": "regex", "choice": "choice", "lark": "grammar"}

_ALWAYS = {"cache_salt": True, "continues_repetition_penalty": True, "bad_words": True, "echo": True}

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_KV_USE = "vllm:kv_cache_usage_perc"
_KV_SIZE = "vllm:cache_config_info"
_PREEMPTED = "vllm:num_preemptions_total"
_PREFIX_HITS = "vllm:prefix_cache_hits_total"
_STARTED = "process_start_time_seconds"
_COMPUTED = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
_METRICS = (
    *((name + "{").encode() for name in (_RUNNING, _WAITING, _KV_USE, _KV_SIZE, _PREEMPTED, _PREFIX_HITS, *_COMPUTED)),
    (_STARTED + " ").encode(),
)


class VllmUpstream:
    """Implements ``models.external.upstream.Upstream`` on a vLLM server."""

    def __init__(
        self, url: str, *, api_key: str | None = None, is_router: bool = False, ask_every_s: float = 15.0
    ) -> None:
        """``ask_every_s``: how often a router is asked if it is there."""
        self._http = ServerClient(url, api_key)
        self._is_router = is_router
        self._is_asked = False
        self._ask_every_s = ask_every_s
        self._asked_at = 0.0
        self._cards: list[dict[str, Any]] = []
        self._has_scale_out = not is_router
        self._capabilities = Capabilities(grammars=_ANY_BACKEND, **_ALWAYS)

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; known after ``describe``."""
        return self._capabilities

    async def describe(self) -> ServerInfo:
        """Ask the server what it runs, and what it can do."""
        version = None if self._is_router else (await self._http.get_json("/version")).get("version")
        cards = await self._ask_models()
        self._asked_at = time.monotonic()
        if not (self._is_router and self._is_asked):  # a router may send the questions to the server that was lost
            await self._ask_capabilities()
        base = next((card for card in cards if not card.get("parent")), cards[0])
        return ServerInfo(
            engine_version=version,
            models=tuple(card["id"] for card in cards),
            root=base.get("root"),
            context_window=base.get("max_model_len"),
            adapters=tuple(card["id"] for card in cards if card.get("parent")),
            **({} if self._is_router else await self._settings()),
        )

    async def _ask_models(self) -> list[dict[str, Any]]:
        """Ask for the models. vLLM's router asks a server that has died, for three minutes by its defaults.

        It sends requests to the others meanwhile. So a token shows that one of them works, with the models as before.
        """
        try:
            self._cards = (await self._http.get_json(_MODELS))["data"]
        except ServerLost:
            if not self._cards:
                raise
            await self._probe(SamplingParams(1), _FIRST if self._capabilities.priorities else 0)
        return self._cards

    async def _load_of_router(self) -> ServerLoad:
        """Ask now and then if the router is there. While it wants no requests, it counts as having one waiting."""
        if time.monotonic() - self._asked_at > self._ask_every_s and not self._http.is_paused:
            self._asked_at = time.monotonic()
            before = [card["id"] for card in self._cards]
            if [card["id"] for card in await self._ask_models()] != before:
                raise UpstreamLost("the models of the inference server have changed")
        return ServerLoad(running=0, waiting=int(self._http.is_paused))

    async def _ask_capabilities(self) -> None:
        if not self._is_router:
            self._has_scale_out = await self._http.post_status(_ABORT, {"request_ids": []}) == _OK
        priorities = await self._accepts(self._probe(SamplingParams(1), priority=_FIRST))
        self._capabilities = Capabilities(
            grammars=await self._grammars(_FIRST if priorities else 0),
            priorities=priorities,
            abort=self._has_scale_out,
            load=not self._is_router,
            **_ALWAYS,
        )
        self._is_asked = True

    async def load(self) -> ServerLoad:
        """Read the server's metrics. Those of several engines behind one address are added up."""
        if self._is_router:
            return await self._load_of_router()
        text = b"\n".join(line for line in (await self._http.get("/metrics")).split(b"\n") if line.startswith(_METRICS))
        totals: dict[str, float] = {}
        uses: list[float] = []
        kv_tokens = 0
        for family in text_string_to_metric_families(text.decode() + "\n"):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
                if sample.name == _KV_USE:
                    uses.append(sample.value)
                elif sample.name == _KV_SIZE:
                    kv_tokens += _size_of(sample.labels)
        if _RUNNING not in totals:
            raise UpstreamLost("the inference server's metrics say nothing of its requests: is it vLLM?")
        return ServerLoad(
            running=int(totals[_RUNNING]),
            waiting=int(totals.get(_WAITING, 0)),
            kv_use=sum(uses) / len(uses) if uses else None,
            kv_tokens=kv_tokens or None,
            num_tokens=int(sum(totals.get(name, 0.0) for name in _COMPUTED)),
            preempted=int(totals.get(_PREEMPTED, 0)),
            prefix_hits=int(totals.get(_PREFIX_HITS, 0)),
            started_at=totals.get(_STARTED),
        )

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        """Send a request and yield its output."""
        path, body = self._message(request)
        if request.sampling.scores_prompt:
            yield await self._whole(path, body, request)
            return
        last: Piece | None = None
        async with aclosing(self._http.stream(path, body, request.headers)) as events:
            async for data in events:
                if data == b"[DONE]":
                    continue  # the end of the body follows, after which the connection can be used again
                message = _message_of(data)
                for choice in message.get("choices", ()):
                    piece = _piece(choice, request.sampling.logprobs)
                    if piece.finish is None:
                        yield piece
                    else:
                        last = piece
                usage = message.get("usage")
                if last is not None and usage:
                    yield _counted(last, usage)
                    last = None
        if last is not None:
            yield last

    async def _whole(self, path: str, body: dict[str, Any], request: UpstreamRequest) -> Piece:
        """Return all the output at once, with the logprobs of the prompt: the server does not stream them."""
        del body["stream"], body["stream_options"]
        message = _message_of(await self._http.post(path, body, request.headers, read_s=None))
        (choice,) = message["choices"]
        rows = choice.get("prompt_logprobs") or message.get("prompt_logprobs") or ()
        if len(rows) != len(request.prompt):
            raise UpstreamFailed(
                f"the inference server sent {len(rows)} logprobs for {len(request.prompt)} tokens of the prompt"
            )
        count = request.sampling.logprobs or 0
        scores = tuple(_likely_of(row, token, count) for row, token in zip(rows[1:], request.prompt[1:], strict=True))
        usage = message.get("usage") or {}
        return replace(_counted(_piece(choice, count), usage), prompt_logprobs=scores)

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests inside the server; without scale-out endpoints their closed connections have done it."""
        if self._has_scale_out and request_ids:
            await self._http.post(_ABORT, {"request_ids": [_PREFIX + each for each in request_ids]})

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    async def _grammars(self, priority: int) -> frozenset[str]:
        lark, regex = Grammar("lark", 'start: "a"'), Grammar("regex", "a")
        if await self._accepts(self._probe(SamplingParams(1, grammar=lark), priority)):
            return _ANY_BACKEND | {"lark"}
        has_any = await self._accepts(self._probe(SamplingParams(1, grammar=regex), priority))
        return _ANY_BACKEND if has_any else frozenset()

    async def _settings(self) -> dict[str, Any]:
        """Return what only a server in development mode says of itself."""
        try:
            found = await self._http.get_json("/server_info?config_format=json")
        except (UpstreamRefused, UpstreamFailed):
            return {}
        model = found.get("vllm_config", {}).get("model_config", {})
        dtype = model.get("dtype")
        return {
            "revision": model.get("revision"),
            "quantization": model.get("quantization"),
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "batch_invariant": found.get("vllm_env", {}).get("VLLM_BATCH_INVARIANT") in {True, "1"},
        }

    async def _probe(self, sampling: SamplingParams, priority: int = 0) -> None:
        """Generate one token after token 0."""
        body = {"stream": True, "priority": priority}
        path, changes = self._prompt((0,), sampling)
        async with aclosing(self._http.stream(path, body | changes)) as events:
            async for data in events:
                if data != b"[DONE]":
                    _message_of(data)

    @staticmethod
    async def _accepts(question: Awaitable[object]) -> bool:
        """Return False if the server refuses a request."""
        try:
            await question
        except (UpstreamRefused, UpstreamFailed):
            return False
        return True

    def _message(self, request: UpstreamRequest) -> tuple[str, dict[str, Any]]:
        path, body = self._prompt(request.prompt, request.sampling, request.stop_token_ids)
        if request.piece_tokens > 1:  # only then, because older servers do not know it
            body.get("sampling_params", body)["stream_interval"] = request.piece_tokens
        body |= {
            "request_id": request.id,
            "model": request.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.priority and self._capabilities.priorities:
            body["priority"] = request.priority
        if request.cache_salt:
            body["cache_salt"] = request.cache_salt
        return path, body

    def _prompt(
        self, prompt: tuple[int, ...], sampling: SamplingParams, stop_token_ids: tuple[int, ...] = ()
    ) -> tuple[str, dict[str, Any]]:
        """Return the path, and the fields for a prompt and its sampling parameters."""
        fields = _sampling(sampling, stop_token_ids)
        if self._has_scale_out:
            return _GENERATE, {"token_ids": prompt, "sampling_params": fields | {"detokenize": False}}
        fields |= {"prompt": prompt, "return_token_ids": True, "return_tokens_as_token_ids": True}
        return _COMPLETIONS, fields


def _sampling(sampling: SamplingParams, stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of vLLM's SamplingParams. All are given, so that no default of the server is used."""
    fields: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if stop_token_ids:
        fields["stop_token_ids"] = stop_token_ids
    if sampling.min_tokens:
        fields["min_tokens"] = sampling.min_tokens
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.logprobs is not None:
        # The chosen token takes the place of one of the most likely.
        fields["logprobs"] = min(sampling.logprobs + 1, _MAX_LOGPROBS)
        if sampling.scores_prompt:
            fields["prompt_logprobs"] = fields["logprobs"]
    if sampling.bad_words:
        fields["bad_words"] = sampling.bad_words
    if sampling.grammar is not None:
        fields["structured_outputs"] = {_CONSTRAINTS[sampling.grammar.kind]: _constraint(sampling.grammar)}
    return fields


def _constraint(grammar: Grammar) -> Any:
    match grammar.kind:
        case "json_schema":
            return narrowed(orjson.loads(grammar.text))
        case "choice":
            return orjson.loads(grammar.text)
        case "lark":
            return _LLGUIDANCE + grammar.text
        case _:
            return grammar.text


def _message_of(data: bytes) -> dict[str, Any]:
    """Return an event's message. Raises the error that it may be."""
    message = parsed_answer(data)
    error = message.get("error")
    if error:
        raise _stream_error(error)
    return dict(message)


def _stream_error(error: dict[str, Any]) -> EngineError:
    reason = quoted(str(error.get("message")))
    if "EngineCore" in reason or "EngineDead" in str(error.get("type")):
        return UpstreamLost(f"the inference server's engine has died: {reason}")
    return error_of(int(error.get("code") or 500), reason)


def _piece(choice: dict[str, Any], num_logprobs: int | None) -> Piece:
    reason = choice.get("finish_reason")
    if reason is not None and reason not in _FINISHES:
        raise UpstreamLost(f"the request was ended inside the inference server ({reason})")
    token_ids = tuple(choice.get("token_ids") or ())
    logprobs = () if num_logprobs is None else tuple(_logprobs(choice.get("logprobs") or {}, num_logprobs))
    if num_logprobs is not None and len(logprobs) != len(token_ids):
        raise UpstreamLost(f"the inference server sent {len(logprobs)} logprobs for {len(token_ids)} tokens")
    return Piece(token_ids, logprobs=logprobs, finish=None if reason is None else _FINISHES[reason])


def _logprobs(found: dict[str, Any], count: int) -> Iterator[SampledLogprobs]:
    """Yield the logprobs of a choice's tokens, in either form, with the ``count`` most likely tokens of each."""
    for each in found.get("content") or ():
        yield _likely(each["logprob"], {top["token_id"]: top["logprob"] for top in each["top_logprobs"]}, count)
    for logprob, tops in zip(found.get("token_logprobs") or (), found.get("top_logprobs") or (), strict=True):
        yield _likely(logprob, {int(name.partition(":")[2]): value for name, value in tops.items()}, count)


def _likely(logprob: float | None, tops: dict[int, float | None], count: int) -> SampledLogprobs:
    best = sorted(tops.items(), key=lambda top: inf if top[1] is None else -top[1])[:count]
    return sent_logprobs(logprob, best)


def _likely_of(row: dict[str, Any], token: int, count: int) -> SampledLogprobs:
    """Return the logprobs of a prompt token from vLLM's, by token id; the token's own is always among them."""
    tops = {int(token_id): found["logprob"] for token_id, found in row.items()}
    return _likely(tops[token], tops, count)


def _counted(piece: Piece, usage: dict[str, Any]) -> Piece:
    """Return the piece with the cached tokens. The server's other counts take emitted tokens for the prompt's."""
    details = usage.get("prompt_tokens_details") or {}
    return replace(piece, num_cached_tokens=details.get("cached_tokens"))


def _size_of(labels: dict[str, str]) -> int:
    """Return the tokens of an engine's KV cache, 0 if it does not say it."""
    size = labels.get("kv_cache_size_tokens", "None")
    if size.isdigit():
        return int(size)
    blocks, block = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
    return int(blocks) * int(block) if blocks.isdigit() and block.isdigit() else 0
