"""The interface of an inference server: what an adapter translates from and to the server's HTTP API.

    describe ──▶ what the server runs, compared with the registered version
    load     ──▶ what it has to do at the moment
    generate ──▶ pieces of one request's output, until one has a finish reason
    abort    ──▶ ends requests inside the server

All methods run on one asyncio loop. An adapter keeps no state of requests; ``external_engine`` does.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Protocol

from headrace.models.engine.requests import EngineError, FinishReason, NumericalError, SampledLogprobs, SamplingParams

SESSION = "x-session-id"
"""The header by which vLLM's router, AIBrix and Dynamo know a conversation; others can be told its name."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server can do for a request. A request that needs more is refused, or starts anew, by ``external_engine``.

    ``token_ids``: prompts go in and outputs come out as token ids of the version's tokenizer. Without it the server
    takes messages and gives text; with ``continues_text`` it goes on with the text of an earlier attempt.
    ``continues_*``: an attempt may continue after emitted tokens although the request has a grammar, penalties or a
    seed, and the output is distributed as that of an uninterrupted attempt. The repetition penalty is apart, because
    most servers count the prompt's tokens for it, and for the others the generated tokens only.
    """

    token_ids: bool = True
    logprobs: bool = True
    grammars: frozenset[str] = frozenset()
    """Kinds of ``models.engine.requests.Grammar`` that the server enforces."""
    priorities: bool = False
    cache_salt: bool = False
    seeds: bool = True
    """False: the server ignores seeds, so a request with one is refused."""
    bad_words: bool = False
    echo: bool = False
    """The server returns the logprobs of the prompt's tokens."""
    load: bool = True
    """False: the server does not say what it has to do, so its queue is not seen."""
    abort: bool = True
    """False: closing the connection is the only way to end a request."""
    continues_text: bool = False
    continues_grammar: bool = False
    continues_repetition_penalty: bool = False
    continues_penalties: bool = False
    """Presence and frequency penalties, and bad words."""
    continues_seed: bool = False


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself when a worker connects. None: the server does not say it."""

    engine_version: str | None
    models: tuple[str, ...]
    """The names that requests may give: the base model and its adapters."""
    root: str | None = None
    """The folder or hub name from which the weights were loaded."""
    revision: str | None = None
    context_window: int | None = None
    quantization: str | None = None
    dtype: str | None = None
    adapters: tuple[str, ...] = ()
    batch_invariant: bool | None = None


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server has to do now. ``kv_use`` is the share of its KV cache in use, 0 to 1.

    ``num_tokens`` is a counter of computed tokens (prompt and output), by which a slow server differs from a hung one.
    ``max_running``: the most requests that the server runs at once. None: the server does not say it.
    """

    running: int
    waiting: int
    kv_use: float | None = None
    kv_tokens: int | None = None
    num_tokens: int | None = None
    preempted: int | None = None
    prefix_hits: int | None = None
    started_at: float | None = None
    """A number that changes when the server restarts."""
    max_running: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request as it is sent. ``id`` is unique for each attempt, and the server knows the request by it.

    ``prompt`` ends with the tokens that earlier attempts emitted; ``max_tokens`` and ``min_tokens`` of ``sampling`` are
    what remains. A seed is
    the caller's. The request ends with one of ``stop_token_ids``: the version's, unless ``sampling.ignore_eos`` is set,
    and the caller's. The engine
    handles stop strings itself. A lower ``priority`` goes first. A piece may have ``piece_tokens`` tokens, which costs
    less than pieces of one token; servers may ignore it. ``messages`` is for servers without token ids: the chat
    completion request's own fields, as JSON values, and ``emitted_text`` the answer that earlier attempts have begun.
    ``traceparent`` is sent as the header of this name, ``session`` as the one that routers send a conversation by.
    """

    id: str
    model: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    piece_tokens: int = 1
    messages: dict[str, object] = field(default_factory=dict)
    emitted_text: str = ""
    traceparent: str | None = None
    session: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The request's own HTTP headers."""
        found = {"traceparent": self.traceparent, SESSION: self.session}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Piece:
    """New output of one request. ``finish`` is set in the last piece only, and is STOP or LENGTH.

    ``token_ids`` include the end-of-sequence token. ``text`` is for servers without token ids, otherwise empty.
    ``logprobs`` has one value for each token if the request asks for them. ``num_cached_tokens`` comes once.
    ``prompt_logprobs`` come once, if the request asks for them, one for each token of the prompt after the first.
    ``num_prompt_tokens``, ``num_output_tokens`` and ``num_reasoning_tokens``, of the request so far, are for servers
    without token ids. The first ``num_reasoning`` characters of ``text`` come before the answer.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[SampledLogprobs, ...] = ()
    finish: FinishReason | None = None
    num_cached_tokens: int | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    prompt_logprobs: tuple[SampledLogprobs, ...] = ()
    num_reasoning: int = 0
    num_reasoning_tokens: int | None = None


def sent_logprobs(logprob: float | None, tops: Iterable[tuple[int, float | None]]) -> SampledLogprobs:
    """Return the logprobs of a token as a server sends them. ``tops``: the most likely tokens, best first.

    JSON has no NaN and no infinity, and servers write null for both. An alternative with null is a token that the
    server has ruled out. Raises NumericalError if the token itself has no finite logprob.
    """
    if logprob is None or not isfinite(logprob):
        raise NumericalError
    known = [(token, -inf if value is None else value) for token, value in tops]
    return SampledLogprobs(logprob, tuple(token for token, _ in known), tuple(value for _, value in known))


class UpstreamRefused(EngineError):
    """The server refuses the request for good (HTTP 4xx): the message quotes its reason, never the prompt."""

    code = "invalid_value"


class UpstreamFailed(EngineError):
    """The server has failed on this request (HTTP 500) and goes on: another attempt may succeed. The job is charged."""

    code = "engine_error"
    retryable = True


class UpstreamLost(EngineError):
    """The server is away, restarts, or broke the connection: another attempt may succeed. The job is not charged."""

    code = "worker_lost"
    retryable = True


class ServerLost(UpstreamLost):
    """A router answers, and says that one of its servers does not."""


class UpstreamBusy(UpstreamLost):
    """The server answers, and takes no requests now: too many, a wrong key, or a proxy without a server."""


class Upstream(Protocol):
    """One inference server. Every method may raise UpstreamLost."""

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; known after ``describe``."""
        ...

    async def describe(self) -> ServerInfo:
        """Ask the server what it runs."""
        ...

    async def load(self) -> ServerLoad:
        """Ask the server what it has to do now."""
        ...

    def generate(self, request: UpstreamRequest) -> AsyncGenerator[Piece, None]:
        """Send a request and yield its output. Closing the generator closes the connection.

        Raises UpstreamRefused and UpstreamFailed."""
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End requests inside the server, so that their KV memory is free. Unknown ids are no error."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
