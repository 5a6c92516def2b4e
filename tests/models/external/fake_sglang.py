"""SGLang 0.5.23's HTTP API on the fake model, in the shape that a real one's answers have (``recordings``)."""

from contextlib import aclosing
from typing import Any

from headrace.store.errors import InvalidRequest
from tests.models.external.fake_model import EOS, VOCAB, Call
from tests.models.external.fake_server import Answer, FakeServer

MODEL = "tiny"


class FakeSglang(FakeServer):
    """``is_deterministic`` is --enable-deterministic-inference, ``by_priority`` is --enable-priority-scheduling,
    ``is_incremental`` is --incremental-streaming-output."""

    INFO = (
        "version",
        "model_path",
        "revision",
        "quantization",
        "dtype",
        "grammar_backend",
        "enable_priority_scheduling",
        "schedule_low_priority_values_first",
        "enable_deterministic_inference",
        "incremental_streaming_output",
    )
    """The fields that the adapter, and readers of the recording, need."""

    def __init__(
        self,
        *,
        is_deterministic: bool = False,
        by_priority: bool = True,
        is_incremental: bool = False,
        grammar_backend: str = "llguidance",
        context_window: int = 2048,
        **size: Any,
    ) -> None:
        self.is_deterministic = is_deterministic
        self.by_priority = by_priority
        self.is_incremental = is_incremental
        self.grammar_backend = grammar_backend
        self.context_window = context_window
        self.model = MODEL
        super().__init__(**size)

    async def answer(self, method: str, path: str, body: dict[str, Any], answer: Answer) -> None:
        match method, path.partition("?")[0]:
            case "GET", "/server_info":
                await answer.json(200, self._info())
            case "GET", "/v1/models":
                card = {"id": self.model, "object": "model", "created": 1, "owned_by": "sglang", "root": self.model}
                card |= {"parent": None, "max_model_len": self.context_window}
                await answer.json(200, {"object": "list", "data": [card]})
            case "GET", "/v1/loads":
                await answer.json(200, {"version": "0.5.23", "num_accelerators": 1, "loads": [self._load()]})
            case "POST", "/abort_request":
                for call, _ in list(self._open.values()):
                    if call.id.startswith(body["rid"]):
                        self.abort(call.id)
                await answer.send(200, b"")
            case "POST", "/generate":
                await self._generate(body, answer)
            case _:
                await answer.json(404, {"detail": "Not Found"})

    async def _generate(self, body: dict[str, Any], answer: Answer) -> None:
        call = self._call(body)
        await answer.begin_stream()
        refusal = self._refusal(body, call)
        if refusal is not None:
            error = {"message": refusal, "type": "invalid_request_error", "code": 400, "retryable": False}
            await answer.event({"error": error})
        else:
            async with aclosing(self.tokens(call)) as tokens:
                async for generated in tokens:
                    await answer.event(self._event(body, call, generated.num_output, generated.finish))
        await answer.event("[DONE]")
        await answer.end_stream()

    def _event(self, body: dict[str, Any], call: Call, num_output: int, finish: str | None) -> dict[str, Any]:
        start = num_output - 1 if self.is_incremental else 0
        output = call.output[:num_output]
        reasons: dict[str | None, dict[str, Any] | None] = {
            None: None,
            "stop": {"type": "stop", "matched": output[-1] if output else None},
            "length": {"type": "length", "length": num_output},
            "abort": {"type": "abort", "message": "Abort in scheduler", "status_code": None, "err_type": None},
        }
        meta: dict[str, Any] = {
            "id": call.id,
            "finish_reason": reasons[finish],
            "prompt_tokens": len(call.prompt),
            "completion_tokens": num_output,
            "cached_tokens": 0,
        }
        if body.get("return_logprob"):
            count = body["top_logprobs_num"]
            tops = [[[value, each, None] for each, value in call.logprobs(token, max(count, 1))] for token in output]
            meta["output_token_logprobs"] = [each[0] for each in tops][start:]
            meta["output_top_logprobs"] = [each if count else None for each in tops][start:]
        text = bytes(token for token in output[start:] if token < EOS).decode()
        return {"text": text, "output_ids": output[start:], "meta_info": meta}

    def _call(self, body: dict[str, Any]) -> Call:
        sampling = body["sampling_params"]
        kinds = {"json_schema": "json_schema", "regex": "regex", "ebnf": "lark"}
        grammar = next(((kind, sampling[name]) for name, kind in kinds.items() if name in sampling), None)
        return Call(
            id=body["rid"],
            prompt=tuple(body["input_ids"]),
            max_tokens=sampling["max_new_tokens"],
            temperature=sampling["temperature"],
            seed=sampling.get("sampling_seed") if self.is_deterministic else None,
            is_seed_positional=True,
            output_penalties=max(abs(sampling[name]) for name in ("presence_penalty", "frequency_penalty"))
            + abs(sampling["repetition_penalty"] - 1),
            ignore_eos=sampling["ignore_eos"],
            stop_token_ids=tuple(sampling.get("stop_token_ids", () if sampling["ignore_eos"] else (EOS,))),
            min_tokens=sampling.get("min_new_tokens", 0),
            grammar=grammar,
            priority=-body.get("priority", 0) if self.by_priority else 0,
            body=body,
        )

    def _refusal(self, body: dict[str, Any], call: Call) -> str | None:
        sampling = body["sampling_params"]
        if not 0 < sampling["repetition_penalty"] <= 2:
            return f"repetition_penalty must be in (0, 2] (1.0 = no penalty), got {sampling['repetition_penalty']}."
        if max(call.prompt) >= VOCAB:
            return "The input_ids contain values out of the vocabulary."
        if "ebnf" in sampling and self.grammar_backend != "llguidance":
            return "Failed to compile ebnf grammar"
        try:
            call.check()
        except InvalidRequest as error:
            return f"Failed to compile grammar: {error.message}"
        return None

    def _info(self) -> dict[str, Any]:
        return {
            "version": "0.5.23",
            "model_path": "/models/tiny",
            "revision": None,
            "quantization": None,
            "dtype": "float32",
            "grammar_backend": self.grammar_backend,
            "enable_priority_scheduling": self.by_priority,
            "schedule_low_priority_values_first": False,
            "enable_deterministic_inference": self.is_deterministic,
            "incremental_streaming_output": self.is_incremental,
        }

    def _load(self) -> dict[str, Any]:
        return {
            "dp_rank": 0,
            "num_running_reqs": len(self.running),
            "num_waiting_reqs": self.num_waiting,
            "max_total_num_tokens": self.kv_tokens,
            "max_running_requests": self.max_running,
            "token_usage": self.kv_use,
            "total_prefill_uncached_tokens": 0,
            "decode_moments": [float(self.num_tokens)] if self.num_tokens else None,
        }
