"""The adapter for SGLang's own HTTP API.

    describe   /server_info, /v1/models
    load       /v1/loads
    generate   /generate with token ids, as a stream
    abort      /abort_request

What a server can do depends on its options, which ``/server_info`` lists.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from headrace.models.engine.requests import EngineError, FinishReason, Grammar, SampledLogprobs
from headrace.models.external.server_client import ServerClient, error_of, parsed_answer, quoted
from headrace.models.external.upstream import (
    Capabilities,
    Piece,
    ServerInfo,
    ServerLoad,
    UpstreamLost,
    UpstreamRequest,
    sent_logprobs,
)

_LLGUIDANCE = "llguidance"  # Headrace's own grammar library, so every grammar means the same
_GRAMMARS = {
    _LLGUIDANCE: frozenset({"json_schema", "regex", "choice", "lark"}),
    "xgrammar": frozenset({"json_schema", "regex", "choice"}),
    "outlines": frozenset({"json_schema", "regex", "choice"}),
}
_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class SglangUpstream:
    """Implements ``models.external.upstream.Upstream``."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._http = ServerClient(url, api_key)
        self._options: Mapping[str, Any] = {}
        self._adapters: tuple[str, ...] = ()

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do by its options; known after ``describe``."""
        return Capabilities(
            grammars=_GRAMMARS.get(self._options.get("grammar_backend") or "", frozenset()),
            priorities=bool(self._options.get("enable_priority_scheduling")),
            cache_salt=True,
            seeds=self._is_deterministic,
            continues_seed=self._is_deterministic,
        )

    @property
    def _is_deterministic(self) -> bool:
        """True if the seed and a token's place alone decide its random number. Otherwise seeds have no effect."""
        return bool(self._options.get("enable_deterministic_inference"))

    async def describe(self) -> ServerInfo:
        """Ask the server what it runs."""
        options = await self._http.get_json("/server_info")
        models = (await self._http.get_json("/v1/models"))["data"]
        base = [one for one in models if not one.get("parent")]
        self._options = options
        self._adapters = tuple(one["id"] for one in models if one.get("parent"))
        return ServerInfo(
            engine_version=options.get("version"),
            models=tuple(one["id"] for one in models),
            root=options.get("model_path"),
            revision=options.get("revision"),
            context_window=next((one.get("max_model_len") for one in base), None),
            quantization=options.get("quantization"),
            dtype=options.get("dtype"),
            adapters=self._adapters,
            batch_invariant=self._is_deterministic,
        )

    async def load(self) -> ServerLoad:
        """Ask the server what it has to do. The KV use counts the tokens of running requests."""
        loads = (await self._http.get_json("/v1/loads?include=core"))["loads"]
        kv_tokens = sum(one["max_total_num_tokens"] for one in loads)
        return ServerLoad(
            running=sum(one["num_running_reqs"] for one in loads),
            waiting=sum(one["num_waiting_reqs"] for one in loads),
            kv_use=max((one["token_usage"] for one in loads), default=0.0),
            kv_tokens=kv_tokens or None,
            num_tokens=sum(_num_computed(one) for one in loads),
            max_running=sum(one["max_running_requests"] for one in loads) or None,
        )

    async def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece]:
        """Send a request and yield its output."""
        num_seen = 0
        async with aclosing(self._http.stream("/generate", self._body(request), request.headers)) as events:
            async for data in events:
                if data == b"[DONE]":
                    return
                piece = _piece(parsed_answer(data), num_seen, request.sampling.logprobs)
                num_seen += len(piece.token_ids)
                yield piece

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests inside the server."""
        for request_id in request_ids:
            await self._http.post("/abort_request", {"rid": _rid(request_id)})

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()

    def _body(self, request: UpstreamRequest) -> dict[str, object]:
        sampling = request.sampling
        body: dict[str, object] = {
            "rid": _rid(request.id),
            "input_ids": request.prompt,
            "stream": True,
            "sampling_params": {**_sampling(request), **self._grammar(sampling.grammar)},
        }
        if request.cache_salt:
            body["extra_key"] = request.cache_salt
        if request.model in self._adapters:
            body["lora_path"] = request.model
        if self.capabilities.priorities:
            is_low_first = self._options.get("schedule_low_priority_values_first")
            body["priority"] = request.priority if is_low_first else -request.priority
        if sampling.logprobs is not None:
            body |= {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": sampling.logprobs}
        return body

    def _grammar(self, grammar: Grammar | None) -> dict[str, str]:
        """Return a grammar as a sampling parameter. SGLang's ``ebnf`` is Lark's syntax with llguidance."""
        if grammar is None:
            return {}
        is_lark = self._options.get("grammar_backend") == _LLGUIDANCE
        match grammar.kind:
            case "json_schema":
                return {"json_schema": _without_white_space(grammar.text) if is_lark else grammar.text}
            case "choice":
                choices = json.loads(grammar.text)
                if is_lark:
                    quoted = (json.dumps(each, ensure_ascii=False) for each in choices)
                    return {"ebnf": f"start: {' | '.join(quoted)}"}
                return {"regex": "|".join(map(re.escape, choices))}
            case "lark":
                return {"ebnf": grammar.text}
            case _:
                return {"regex": grammar.text}


def _piece(event: Mapping[str, Any], num_seen: int, num_top: int | None) -> Piece:
    """Return what is new in an event. With the server's default options each one repeats all that came before."""
    if "error" in event:
        raise error_of(int(event["error"].get("code") or 500), quoted(str(event["error"].get("message"))))
    meta = event["meta_info"]
    ended = meta.get("finish_reason") or {}
    if ended.get("type") == "abort":
        raise _error_of_abort(ended)
    num_new = meta["completion_tokens"] - num_seen
    token_ids = tuple(event["output_ids"][-num_new:]) if num_new > 0 else ()
    return Piece(
        token_ids=token_ids,
        logprobs=() if num_top is None else _logprobs(meta, len(token_ids), num_top),
        finish=_FINISH[ended["type"]] if ended else None,
        num_cached_tokens=None if num_seen else meta.get("cached_tokens"),
    )


def _error_of_abort(ended: Mapping[str, Any]) -> EngineError:
    """Return the error of a request that the server has ended: it has a status if the request is at fault."""
    if ended.get("status_code") is None:
        return UpstreamLost("the inference server has aborted the request")
    return error_of(int(ended["status_code"]), quoted(str(ended.get("message"))))


def _rid(request_id: str) -> str:
    """Return SGLang's id of a request. An abort ends every request whose id begins with the given one."""
    return f"{request_id}."


def _sampling(request: UpstreamRequest) -> dict[str, object]:
    sampling = request.sampling
    params: dict[str, object] = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "ignore_eos": sampling.ignore_eos,
    }
    if sampling.seed is not None:
        params["sampling_seed"] = sampling.seed
    if request.stop_token_ids:
        params["stop_token_ids"] = request.stop_token_ids
    if sampling.min_p:
        params["min_p"] = sampling.min_p
    if sampling.min_tokens:
        params["min_new_tokens"] = sampling.min_tokens
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return params


def _without_white_space(schema: str) -> str:
    """Return a schema whose answers have no white space to choose: a small model may write nothing else."""
    value = json.loads(schema)
    return json.dumps({"x-guidance": {"whitespace_flexible": False}, **({} if value is True else value)})


def _logprobs(meta: Mapping[str, Any], num_new: int, num_top: int) -> tuple[SampledLogprobs, ...]:
    """Return the logprobs of the newest tokens. The server writes each as [logprob, token id, text]."""
    if not num_new:
        return ()
    chosen = meta["output_token_logprobs"][-num_new:]
    tops = meta["output_top_logprobs"][-num_new:] if num_top else [[]] * num_new
    return tuple(
        sent_logprobs(one[0], [(token, value) for value, token, *_ in top or ()])
        for one, top in zip(chosen, tops, strict=True)
    )


def _num_computed(load: Mapping[str, Any]) -> int:
    """Return a counter that grows with each prefill and each decode step of a scheduler."""
    steps = load.get("decode_moments") or [0]
    return int(load["total_prefill_uncached_tokens"] + steps[0])
