"""The values that go into an engine and come out of it: requests, deltas, results, errors, statistics.

Every submitted request gets an outcome: a result (``CompletionOutput``, ``EncodeOutput``), or an ``EngineError`` on its
future.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from headrace.models.engine.reasoning import ReasoningTokens

RequestId: TypeAlias = Hashable
"""Names a request. The engine only compares ids and gives them back; a worker uses ``workers.runs.in_flight``'s."""


UNKNOWN_TOKEN = -1
"""Stands for each token of an output that a server gives as text, so that tokens are counted as everywhere else."""


class FinishReason(StrEnum):
    """Why a request stopped producing tokens."""

    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # ``max_tokens`` reached
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    HANDED_BACK = "handed_back"  # not at its end: another attempt continues it


MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar that the output must match. ``kind`` is the language of ``text``: see
    ``store.payloads.sampling_params.GrammarKind``."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``logprobs`` n returns the logprob of each token and of the n most likely ones; None returns none. With a
    ``grammar`` only tokens that it allows are sampled, and the sequence ends only when the grammar is complete.
    ``min_p``, ``min_tokens``, ``stop_token_ids``, ``logit_bias``, ``bad_words`` and ``echo`` are as in
    ``store.payloads.sampling_params``; None is off.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: Mapping[int, float] | None = None
    bad_words: tuple[str, ...] | None = None
    echo: bool | None = None

    @property
    def has_token_rules(self) -> bool:
        """True if the logits of some tokens change whatever the prompt is."""
        return bool(self.logit_bias or self.min_tokens or self.bad_words)

    @property
    def scores_prompt(self) -> bool:
        """True if the logprobs of the prompt's tokens are asked for."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def has_penalties(self) -> bool:
        """True if the tokens so far change the next one's logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class SampledLogprobs:
    """Natural logarithm of a token's probability, before penalties, masks, temperature, top-k and top-p.

    ``top_ids`` are the most likely tokens, best first, with ``top_logprobs``; the chosen token may be among them.
    """

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Adapter(Protocol):
    """A LoRA adapter in the memory of a model. Only the model that loaded it can use it."""

    @property
    def key(self) -> str:
        """Names the weights. Keys and values of the KV cache are shared only by requests with the same key."""
        ...


BACKGROUND_RANK = 2
"""Requests of this ``class_rank`` or above are background work: no client waits for the next token."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt to continue.

    ``deadline`` is a reading of the engine's monotonic clock in seconds, or None. ``emitted`` are the output tokens
    of an earlier attempt, ``emitted_deltas`` the texts that were shown of them and ``emitted_logprobs`` their logprobs
    if the request asks for them: the request continues after them as if it had never stopped. It is handed back after
    ``pause_after`` new tokens. Only requests of the same ``cache_salt`` share KV blocks. A lower ``class_rank`` goes
    before a higher one, but the oldest request goes before all. ``banned`` are the token sequences of
    ``sampling.bad_words``, for an engine that samples itself. ``messages`` are the fields of a chat completion
    request, as JSON values: engines without token ids send them instead of the prompt. ``group`` is the id under which
    the requests of several choices are cancelled together. Stop strings, stop tokens of the request and the grammar
    apply to what follows the ``reasoning``; None: to all of the output. ``adapter``: a change of the model for this
    request; None: the model as it is. ``traceparent``: the trace context that an inference server gets; None: it gets
    none. ``session`` is the same for all turns of a conversation, which a router may send to one server; "": not known.
    """

    id: RequestId
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deadline: float | None = None
    emitted: tuple[int, ...] = ()
    emitted_deltas: tuple[str, ...] = ()
    emitted_logprobs: tuple[SampledLogprobs, ...] = ()
    pause_after: int | None = None
    cache_salt: str = ""
    class_rank: int = 0
    banned: tuple[tuple[int, ...], ...] = ()
    messages: dict[str, object] = field(default_factory=dict)
    group: RequestId | None = None
    reasoning: ReasoningTokens | None = None
    adapter: Adapter | None = None
    traceparent: str | None = None
    session: str = ""

    @property
    def is_bound_in_reasoning(self) -> bool:
        """True if tokens may be forced or ruled out before the answer begins."""
        marks = self.reasoning
        return marks is not None and (marks.is_forced or marks.budget is not None or self.sampling.grammar is not None)


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one request: never half a character and never part of a stop string.

    ``seq`` numbers a request's deltas from 1 without gaps, over all attempts. ``token_ids`` are the tokens of the text,
    ``logprobs`` their logprobs if the request asks for them.
    """

    request_id: RequestId
    seq: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[SampledLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class EmittedOutput:
    """The output of a request that was shown so far: another attempt continues from it.

    One text and its tokens for each delta. ``logprobs`` are those of all the tokens, if the request asks for them.
    ``first_token_s``: from the submission to the first token that this request added.
    """

    deltas: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[SampledLogprobs, ...] = ()
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """The result of a generation request. Times are seconds since the request was submitted.

    ``token_ids`` are all generated tokens, with the end-of-sequence token and the tokens of a stop string;
    ``logprobs`` has one for each if the request asks for them. ``deltas`` are the texts of all Deltas in order; joined
    they are ``text``. ``delta_token_ids`` are the tokens of each. All of them begin with the output of earlier
    attempts. ``num_cached_tokens`` of the prompt were in the prefix cache and not computed. ``reported_output_tokens``
    is the count of an inference server that gives text without tokens. ``stop_text``: the stop string that ended the
    text, if one did. ``prompt_logprobs``: of the prompt's tokens after the first, if the request asks for them.
    ``num_reasoning_tokens`` of the output are reasoning, without its marks.
    """

    request_id: RequestId
    text: str
    token_ids: tuple[int, ...]
    deltas: tuple[str, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    queued_s: float
    first_token_s: float | None
    total_s: float
    delta_token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[SampledLogprobs, ...] = ()
    num_cached_tokens: int = 0
    reported_output_tokens: int | None = None
    stop_text: str | None = None
    prompt_logprobs: tuple[SampledLogprobs, ...] = ()
    num_reasoning_tokens: int = 0

    @property
    def num_output_tokens(self) -> int:
        """The generated tokens, as an inference server counts them if it gives no ids."""
        return len(self.token_ids) if self.reported_output_tokens is None else self.reported_output_tokens

    @property
    def progress(self) -> EmittedOutput:
        """The output from which another attempt continues."""
        num_shown = sum(map(len, self.delta_token_ids))
        return EmittedOutput(self.deltas, self.delta_token_ids, self.logprobs[:num_shown], self.first_token_s)


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Inputs to encode, each a whole sequence of tokens.

    The engine does not read ``options``: the encoder gets them with each row, and their type depends on the task.
    ``deadline`` and ``class_rank`` are as in ``EngineRequest``.
    """

    id: RequestId
    inputs: tuple[tuple[int, ...], ...]
    options: Any = None
    deadline: float | None = None
    class_rank: int = 0

    @property
    def num_tokens(self) -> int:
        """The tokens of all inputs."""
        return sum(map(len, self.inputs))


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class EncodeRow:
    """One input of a request, as the encoder takes it. ``index`` is its position among the request's inputs."""

    request_id: RequestId
    tokens: tuple[int, ...]
    options: Any
    index: int = 0
    is_wanted: Callable[[], bool] = _always
    """False if its request is to end now. A call also tells the engine that a long computation goes on."""


@dataclass(frozen=True, slots=True)
class EncodeOutput:
    """The result of an encode request. Times are seconds since the request was submitted.

    ``vectors`` has one vector for each input (little-endian float32) if the reason is STOP, otherwise it is empty.
    ``num_tokens`` tokens were computed.
    """

    request_id: RequestId
    vectors: tuple[bytes, ...]
    finish_reason: FinishReason
    num_tokens: int
    total_s: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's statistics, for health, Flower and metrics."""

    steps: int
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    max_slots: int
    batch_rows: int  # of all passes
    padding_tokens: int  # positions of passes that held no token
    prompt_tokens: int
    output_tokens: int
    completed: int
    failed: int
    preempted: int
    cached_tokens: int  # prompt tokens that were in the prefix cache
    evicted_blocks: int  # cached blocks that were reused for other tokens
    drafted_tokens: int  # draft tokens that were verified
    accepted_tokens: int  # draft tokens that were accepted
    mean_batch: float  # decode rows per step that decoded, since the start
    peak_batch: int  # the most rows of one step, prefill chunks included
    last_step_age_s: float  # seconds since the last pass ended, 0 when idle
    recent_batches: tuple[int, ...] = field(default=())  # rows of the last passes, newest last


class EngineError(Exception):
    """The request has no result. ``code`` is the job's error code; ``retryable``: another attempt may succeed.

    ``progress`` is the output that was shown, None for a request that was not accepted.
    """

    code = "engine_error"
    retryable = False
    progress: EmittedOutput | None = None


class RequestInvalid(EngineError):
    """The request can never be computed: an empty prompt, no tokens to generate, an id that is in use."""

    code = "invalid_value"


class RequestTooLong(EngineError):
    """The prompt and ``max_tokens`` do not fit the context window or the KV pool."""

    code = "context_length_exceeded"


class CheckpointMismatch(EngineError):
    """The emitted tokens do not produce the emitted texts, as with another tokenizer: the job must start anew."""

    code = "checkpoint_mismatch"
    retryable = True


class NumericalError(EngineError):
    """The model's output for this request is not finite, whatever the task."""

    code = "numerical_error"

    def __init__(
        self,
        message: str = "the model's output is not finite (NaN or infinity): check the input, and the weights and the "
        "number format of the version",
    ) -> None:
        super().__init__(message)


class GrammarStuck(EngineError):
    """No token of the model could follow within the request's grammar."""

    code = "grammar_stuck"


class RunnerFailed(EngineError):
    """The runner of a task of another package failed for this request alone; the same input would fail again."""

    code = "runner_failed"


class CallTimedOut(EngineError):
    """A call took longer than its time limit. What it does may still happen, so it is not made again."""

    code = "call_timed_out"


class EngineStopped(EngineError):
    """The engine is stopping or has died; the request may be retried elsewhere.

    ``has_begun``: False for an accepted request that was in no step, so it cannot be what ended the engine.
    """

    code = "worker_lost"
    retryable = True
    has_begun = True


class StepFailed(EngineError):
    """The runner raised an error for this request alone; that error is the ``__cause__``."""

    code = "worker_lost"
    retryable = True


class OutOfMemory(StepFailed):
    """A step with this request alone needs more memory than the device has."""

    code = "out_of_memory"
