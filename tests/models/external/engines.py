"""The engines of the contract suite, each with what a test needs: requests, the answer asked directly, its server."""

import asyncio
import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.requests import CompletionOutput, Delta, EngineRequest, FinishReason, SamplingParams
from headrace.models.engine.runner import Sampled, StepPlan
from headrace.models.external.external_engine import ExternalConfig, ExternalEngine
from headrace.models.external.openai_chat import OpenaiChatUpstream
from headrace.models.external.sglang import SglangUpstream
from headrace.models.external.upstream import Capabilities, ServerInfo, ServerLoad, Upstream
from headrace.models.external.vllm import VllmUpstream
from headrace.models.fakes.fake import FakeRunner
from headrace.models.families.model_folder import small_files
from headrace.models.loading.torch_load import runner_for
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tokenizer import load_tokenizer
from headrace.store.payloads.sampling_params import GrammarKind
from headrace.store.settings import Settings
from tests.models.driving import generate
from tests.models.engine.rig import Bytes, alone
from tests.models.external import fake_chat, fake_model, fake_sglang
from tests.models.external.fake_chat import FakeChat
from tests.models.external.fake_sglang import FakeSglang
from tests.models.external.fake_vllm import MODEL, FakeVllm
from tests.models.tiny import build, save, save_tokenizer

WAIT_S = 60.0  # never reached, unless a test fails
WINDOW = 1536  # of the fakes: a request that fills it takes seconds, so that a test on a busy machine ends it before
NATIVE_WINDOW = 512
NATIVE_STEP_S = 0.01  # a step of the native engine's longest requests takes so much longer, for the same reason
REAL_WINDOW = 8192  # of real servers, which go on while a busy machine runs no test
ALL = Capabilities(
    grammars=frozenset(GrammarKind),
    priorities=True,
    cache_salt=True,
    continues_grammar=True,
    continues_repetition_penalty=True,
    continues_penalties=True,
    continues_seed=True,
)

_ids = itertools.count(1)


@dataclass
class Rig:
    """One started engine."""

    engine: LLMEngine | ExternalEngine
    can: Capabilities
    direct: Callable[[EngineRequest], tuple[int, ...]]
    """The tokens of a greedy request that bypasses the engine."""
    deltas: list[Delta] = field(default_factory=list)
    detokenizer: Callable[[], Any] = Bytes
    eos: frozenset[int] = frozenset({fake_model.EOS})
    server: Any = None
    limit_s: float = 0.5
    """The longest step that is healthy."""
    load: Callable[[], ServerLoad] | None = None
    messages: Callable[[bytes, SamplingParams], dict[str, object]] = lambda text, sampling: {}
    window: int = WINDOW
    words: Sequence[tuple[int, ...]] = tuple(tuple(text.encode()) for text in ("the mill", "a river", "oak and iron"))

    @property
    def goes_on(self) -> bool:
        """True if an attempt goes on after an earlier one, by its tokens or by its text."""
        return self.can.token_ids or self.can.continues_text

    @property
    def long(self) -> int:
        """``max_tokens`` of a request that a test ends: so many that it does not end before."""
        return self.window - 40

    def ask(self, number: int = 0, *, max_tokens: int = 40, **sampling: Any) -> EngineRequest:
        params, prompt = SamplingParams(max_tokens, **sampling), self.words[number]
        messages = self.messages(bytes(token % 256 for token in prompt), params)
        return EngineRequest(f"r{next(_ids)}", prompt, params, messages=messages)

    def run(self, request: EngineRequest) -> CompletionOutput:
        return self.engine.submit(request).result(WAIT_S)

    def text_of(self, tokens: Sequence[int]) -> str:
        detokenizer = self.detokenizer()
        return "".join(detokenizer.add(token) for token in tokens if token not in self.eos) + detokenizer.flush()

    def tokens(self, completion: CompletionOutput) -> tuple[int, ...]:
        """Return the tokens of an answer: those of its text from a server without token ids."""
        if self.can.token_ids:
            return completion.token_ids
        end = (fake_model.EOS,) if completion.finish_reason is FinishReason.STOP else ()
        return (*completion.text.encode(), *end)

    def wait_for_text(self, request: EngineRequest, num_deltas: int = 3) -> None:
        wait_until(lambda: sum(delta.request_id == request.id for delta in self.deltas) >= num_deltas)

    def wait_idle(self) -> None:
        """Wait until the engine, and its server, compute nothing."""
        wait_until(lambda: self.engine.stats().running + self.engine.stats().waiting == 0)
        if self.load is not None:
            load = self.load
            wait_until(lambda: load().running + load().waiting == 0)


def wait_until(holds: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def continued(request: EngineRequest, done: CompletionOutput) -> EngineRequest:
    """Return the request of the next attempt."""
    return replace(
        request,
        id=f"{request.id} again",
        emitted=tuple(chain(*done.progress.token_ids)),
        emitted_deltas=done.progress.deltas,
        emitted_logprobs=done.progress.logprobs,
        pause_after=None,
    )


def shortened(request: EngineRequest) -> EngineRequest:
    """Return the request of a next attempt so that it ends at most 30 tokens after those that were emitted."""
    max_tokens = min(request.sampling.max_tokens, len(request.emitted) + 30)
    return replace(request, sampling=replace(request.sampling, max_tokens=max_tokens))


@contextmanager
def native() -> Iterator[Rig]:
    """Our own engine on torch, with a tiny model that transformers computes alone."""
    model = build("llama")
    deltas: list[Delta] = []
    with TemporaryDirectory() as name:
        folder = save_tokenizer(save(model, Path(name)))
        runner = runner_for(folder, Settings(device="cpu", dtype="float32", kv_pool_tokens=4096))
        tokenizer = load_tokenizer(small_files(folder))
    run = runner.run

    def run_slowly(plan: StepPlan) -> list[Sampled]:
        if any(row.request.sampling.max_tokens >= NATIVE_WINDOW - 40 for row in plan.rows):
            time.sleep(NATIVE_STEP_S)
        return run(plan)

    runner.run = run_slowly
    engine = LLMEngine(runner, lambda: Detokenizer(tokenizer), EngineConfig(max_slots=8), on_deltas=deltas.extend)

    def direct(request: EngineRequest) -> tuple[int, ...]:
        found = generate(model, request.prompt, request.sampling.max_tokens)
        ends = [number for number, token in enumerate(found, 1) if token in runner.eos_token_ids]
        return tuple(found[: ends[0]] if ends and not request.sampling.ignore_eos else found)

    eos = runner.eos_token_ids
    yield from started(Rig(engine, ALL, direct, deltas, lambda: Detokenizer(tokenizer), eos, window=NATIVE_WINDOW))


@contextmanager
def fake() -> Iterator[Rig]:
    """Our own engine on the fake runner."""
    deltas: list[Delta] = []
    runner = FakeRunner(context_window=WINDOW, step_s=0.002)
    engine = LLMEngine(runner, Bytes, EngineConfig(max_slots=8), on_deltas=deltas.extend)
    yield from started(Rig(engine, ALL, lambda request: alone(request).token_ids, deltas))


@contextmanager
def vllm(**how: Any) -> Iterator[Rig]:
    """A fake vLLM server, with our engine on it."""
    is_router = how.pop("is_router", False)
    server = FakeVllm(context_window=WINDOW, **how)
    upstream = VllmUpstream(server.url, is_router=is_router, ask_every_s=0.05)
    try:
        with external(upstream, server.url, MODEL, lambda: VllmUpstream(server.url)) as rig:
            rig.server = server
            yield rig
    finally:
        server.close()


@contextmanager
def sglang(**how: Any) -> Iterator[Rig]:
    """A fake SGLang server, with our engine on it."""
    server = FakeSglang(context_window=WINDOW, **how)
    try:
        with external(
            SglangUpstream(server.url), server.url, fake_sglang.MODEL, lambda: SglangUpstream(server.url)
        ) as rig:
            rig.server = server
            rig.direct = answer_of_fake
            yield rig
    finally:
        server.close()


@contextmanager
def chat(**how: Any) -> Iterator[Rig]:
    """A fake server of chat completions, with our engine on it."""
    server = FakeChat(writes_usage=False, **how)
    upstream = OpenaiChatUpstream(server.url, ask_every_s=0.05, continues=server.continues)
    try:
        with external(upstream, server.url, fake_chat.MODEL, lambda: upstream, messages=chat_messages) as rig:
            rig.server = server
            rig.direct = answer_of_fake_chat
            rig.load = lambda: ServerLoad(len(server.running), server.num_waiting)
            yield rig
    finally:
        server.close()


def chat_messages(text: bytes, sampling: SamplingParams) -> dict[str, object]:
    content = (fake_chat.ON_AND_ON if sampling.ignore_eos else "") + text.decode()
    return {"messages": [{"role": "user", "content": content}]}


def answer_of_fake(request: EngineRequest) -> tuple[int, ...]:
    sampling = request.sampling
    return fake_model.answer(request.prompt, sampling.max_tokens, ignore_eos=sampling.ignore_eos)


def answer_of_fake_chat(request: EngineRequest) -> tuple[int, ...]:
    messages: Any = request.messages["messages"]
    prompt = messages[-1]["content"].encode()
    return fake_model.answer(prompt, request.sampling.max_tokens, ignore_eos=request.sampling.ignore_eos)


@contextmanager
def external(upstream: Upstream, url: str, model: str, another: Callable[[], Upstream], **how: Any) -> Iterator[Rig]:
    """An engine on a server that has come up. ``another`` makes a second connection for the test's own questions."""
    deltas: list[Delta] = []
    eos: frozenset[int] = how.pop("eos", frozenset({fake_model.EOS}))
    detokenizer = how.pop("detokenizer", Bytes)
    config = ExternalConfig(model, how.get("window", WINDOW), max_slots=50, poll_s=0.02)

    def refuse(info: ServerInfo) -> str | None:
        return None if model in info.models else f"the server runs {info.models}"

    engine = ExternalEngine(upstream, detokenizer, eos, config, on_deltas=deltas.extend, refuse=refuse)
    direct = lambda request: completion_of_vllm(url, model, request, eos)  # noqa: E731
    rig = Rig(engine, upstream.capabilities, direct, deltas, detokenizer, eos, load=lambda: load_of(another()), **how)
    yield from started(rig)


def started(rig: Rig) -> Iterator[Rig]:
    rig.engine.start()
    try:
        wait_until(lambda: rig.engine.can_admit(1, 1), 120.0)
        if isinstance(rig.engine, ExternalEngine):
            rig.can = rig.engine.capabilities
        yield rig
    finally:
        rig.engine.stop(WAIT_S)


def load_of(upstream: Upstream) -> ServerLoad:
    async def ask() -> ServerLoad:
        try:
            return await upstream.load()
        finally:
            await upstream.close()

    return asyncio.run(ask())


def completion_of_vllm(url: str, model: str, request: EngineRequest, eos: frozenset[int]) -> tuple[int, ...]:
    """Ask a vLLM server without any code of ours."""
    sampling = request.sampling
    body: dict[str, Any] = {"model": model, "prompt": request.prompt, "max_tokens": sampling.max_tokens}
    body |= {"temperature": 0, "ignore_eos": sampling.ignore_eos, "stop_token_ids": sorted(eos)}
    body |= {"stream": True, "return_token_ids": True}
    if sampling.ignore_eos:
        del body["stop_token_ids"]
    ask = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(ask, timeout=120) as lines:
        events = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    return tuple(chain(*(choice["token_ids"] for event in events for choice in event["choices"])))


ENGINES: Mapping[str, Callable[[], Any]] = {
    "native": native,
    "fake": fake,
    "vllm": vllm,
    "vllm without scale-out": lambda: vllm(has_scale_out=False),
    "vllm behind a router": lambda: vllm(is_router=True),
    "sglang": sglang,
    "sglang deterministic": lambda: sglang(is_deterministic=True, is_incremental=True),
    "openai": chat,
    "openai, goes on": lambda: chat(continues=True),
}
