"""vLLM 0.32's HTTP API on the fake model, in the shape that ``recordings/vllm-0.32.json`` keeps of the real one."""

import json
from contextlib import aclosing
from typing import Any

from headrace.store.errors import InvalidRequest
from tests.models.external.fake_model import EOS, VOCAB, Call
from tests.models.external.fake_server import Answer, FakeServer, Generated

MODEL = "tiny"
_KINDS = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}


class FakeVllm(FakeServer):
    """``has_scale_out`` is --enable-scale-out, ``by_priority`` is --scheduling-policy priority."""

    def __init__(
        self, *, has_scale_out: bool = True, by_priority: bool = True, context_window: int = 2048, **size: Any
    ) -> None:
        self.has_scale_out = has_scale_out
        self.by_priority = by_priority
        self.context_window = context_window
        self.model = MODEL
        self.num_engines = 1
        self.abort_calls: list[str] = []
        super().__init__(**size)

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        match method, path:
            case "GET", "/version":
                await answer.json(200, {"version": "0.32.0"})
            case "GET", "/v1/models":
                await answer.json(200, {"object": "list", "data": [self._card()]})
            case "GET", "/metrics":
                await answer.send(200, self._metrics().encode(), "text/plain")
            case "POST", "/inference/v1/abort_requests" | "/inference/v1/generate" if not self.has_scale_out:
                await answer.json(403, _error("Scale-out endpoints are disabled.", 403, "PermissionDeniedError"))
            case "POST", "/inference/v1/abort_requests":
                for request_id in body["request_ids"]:
                    self.abort_calls.append(request_id)
                    self.abort(request_id)
                await answer.send(200, b"")
            case "POST", "/inference/v1/generate":
                await self._generate(body, answer)
            case "POST", "/v1/completions":
                await self._complete(body, answer)
            case _:
                await answer.json(404, {"detail": "Not Found"})

    async def _generate(self, body: dict[str, Any], answer: Answer) -> None:
        request_id = f"generate-tokens-{body.get('request_id', 'random')}"
        call = self._call(request_id, body["token_ids"], body["sampling_params"], body)
        count = body["sampling_params"].get("logprobs")

        def chunk(new: Generated) -> dict[str, Any]:
            token_ids = [] if new.token is None else [new.token]
            choice = {"index": 0, "finish_reason": new.finish, "stop_reason": None, "token_ids": token_ids}
            choice |= {"routed_experts": None, "sampling_mask": None, "weight_versions": None, "logprobs": None}
            if count is not None and new.token is not None:
                tops = [
                    {"token_id": each, "logprob": value, "rank": rank}
                    for rank, (each, value) in enumerate(call.logprobs(new.token, max(count, 1)), 1)
                ]
                choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
            return {"request_id": request_id, "usage": None, "output_mode": "tokens", "choices": [choice]}

        tail = {"request_id": request_id, "output_mode": "tokens", "choices": []}
        await self._stream(body, call, chunk, tail, answer)

    async def _complete(self, body: dict[str, Any], answer: Answer) -> None:
        request_id = f"cmpl-{body.get('request_id', 'random')}"
        call = self._call(f"{request_id}-0", body["prompt"], body, body)
        count = body.get("logprobs")
        common = {"id": request_id, "object": "text_completion", "created": 1, "model": self.model}

        def chunk(new: Generated) -> dict[str, Any]:
            text = "" if new.token is None or new.token >= EOS else chr(new.token)
            choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": new.finish}
            is_first = new.num_output == 1
            choice |= {"stop_reason": None, "prompt_token_ids": list(call.prompt) if is_first else None}
            choice["token_ids"] = [] if new.token is None else [new.token]
            if count is not None and new.token is not None:
                tops = call.logprobs(new.token, max(count, 1))
                choice["logprobs"] = {
                    "text_offset": [0],
                    "token_logprobs": [tops[0][1]],
                    "tokens": [f"token_id:{new.token}"],
                    "top_logprobs": [{f"token_id:{each}": value for each, value in tops}],
                }
            return {**common, "choices": [choice]}

        tail = {**common, "choices": [], "system_fingerprint": "vllm-0.32.0-fake"}
        await self._stream(body, call, chunk, tail, answer)

    async def _stream(self, body: dict[str, Any], call: Call, chunk: Any, tail: dict[str, Any], answer: Answer) -> None:
        """Write the events of a request, as vLLM does: what it refuses, it refuses in a stream that has begun."""
        if body.get("model", self.model) != self.model:
            await answer.json(404, _error(f"The model `{body['model']}` does not exist.", 404, "NotFoundError"))
            return
        if not body.get("stream"):
            await answer.json(200, await self._whole(body, call, chunk))
            return
        await answer.begin_stream()
        refusal = self._refusal(body, call)
        if refusal is not None:
            await answer.event(_error(refusal, 400, "BadRequestError"))
        else:
            async with aclosing(self.tokens(call)) as tokens:
                async for generated in tokens:
                    await answer.event(chunk(generated))
            num_prompt, num_output = len(call.prompt), len(call.output)
            usage = {"prompt_tokens": num_prompt, "total_tokens": num_prompt + num_output}
            usage |= {"completion_tokens": num_output, "prompt_tokens_details": {"cached_tokens": 0}}
            if body.get("stream_options", {}).get("include_usage"):
                await answer.event({**tail, "usage": usage})
        await answer.event("[DONE]")
        await answer.end_stream()

    async def _whole(self, body: dict[str, Any], call: Call, chunk: Any) -> dict[str, Any]:
        """Return the answer without a stream, in which alone are the logprobs of the prompt."""
        async with aclosing(self.tokens(call)) as tokens:
            chunks = [chunk(generated) async for generated in tokens]
        choices = [choice for one in chunks for choice in one["choices"]]
        whole = choices[-1] | {"token_ids": [token for choice in choices for token in choice["token_ids"]]}
        given = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        whole["logprobs"] = (
            {name: [one for each in given for one in each[name]] for name in given[0]} if given else None
        )
        count = body.get("sampling_params", body)["prompt_logprobs"]
        rows = [
            {str(each): {"logprob": value, "rank": 1} for each, value in call.logprobs(token, count)}
            for token in call.prompt[1:]
        ]
        scores = {"prompt_logprobs": [None, *rows]}
        # With scale-out endpoints they stand beside the choices.
        return chunks[0] | ({"choices": [whole | scores]} if "prompt" in body else {"choices": [whole], **scores})

    def _call(self, request_id: str, prompt: list[int], sampling: dict[str, Any], body: dict[str, Any]) -> Call:
        constraint = sampling.get("structured_outputs") or {}
        grammar = next(((_KINDS[name], _text(value)) for name, value in constraint.items()), None)
        return Call(
            id=request_id,
            prompt=tuple(prompt),
            max_tokens=sampling["max_tokens"],
            temperature=sampling.get("temperature", 1.0),
            seed=sampling.get("seed"),
            output_penalties=sampling.get("presence_penalty", 0.0) + sampling.get("frequency_penalty", 0.0),
            ignore_eos=sampling.get("ignore_eos", False),
            stop_token_ids=tuple(sampling.get("stop_token_ids", () if sampling.get("ignore_eos") else (EOS,))),
            min_tokens=sampling.get("min_tokens", 0),
            grammar=grammar,
            priority=body.get("priority", 0),
            body=body,
        )

    def _refusal(self, body: dict[str, Any], call: Call) -> str | None:
        if call.priority and not self.by_priority:
            return "Got priority 1 but Priority scheduling is not enabled."
        if max(call.prompt) >= VOCAB:
            return f"Token id {max(call.prompt)} is out of vocabulary"
        try:
            call.check()
        except InvalidRequest as error:
            return f"Grammar error: {error.message}"
        return None

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": 1,
            "owned_by": "vllm",
            "root": "/models/tiny",
            "parent": None,
            "max_model_len": self.context_window,
            "permission": [],
        }

    def _metrics(self) -> str:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        values = {
            "num_requests_running": len(self.running),
            "num_requests_waiting": self.num_waiting,
            "kv_cache_usage_perc": self.kv_use,
            "generation_tokens_total": self.num_tokens,
        }
        size = f'block_size="128",kv_cache_size_tokens="{self.kv_tokens}"'
        sizes = [f'vllm:cache_config_info{{{size},engine="{number}"}} 1.0' for number in range(self.num_engines)]
        started = f"process_start_time_seconds {float(self.num_starts)}"
        return "\n".join(
            [*(f"vllm:{name}{labels} {float(value)}" for name, value in values.items()), *sizes, started, ""]
        )


def _error(message: str, code: int, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _text(value: Any) -> str:
    return value.removeprefix("%llguidance {}\n") if isinstance(value, str) else json.dumps(value)
