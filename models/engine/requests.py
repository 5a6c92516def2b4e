"""What goes into the engine and what comes out: plain values, no clock of their own, no tensors.

Every request that is submitted gets an outcome: a ``Completion``, or one of the ``EngineError``s set on its future.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a request stopped producing tokens."""

    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # ``max_tokens`` reached
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    HANDED_BACK = "handed_back"  # not at its end: ``pause_after`` tokens later, or asked to, for another to go on


MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like; ``kind`` says how ``text`` is written
    (``store.payloads.job_payload.GrammarKind``)."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``logprobs`` asks how likely the model found each token, beside so many of the likeliest; None does not ask. With a
    ``grammar`` each token is one that it allows, and the end of the sequence only comes when it is complete.
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

    @property
    def has_penalties(self) -> bool:
        """True if the tokens so far change the next one's logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the model found a token: natural logarithms, before penalties, masks, temperature and cuts.

    ``top_ids`` are the likeliest tokens, best first, with ``top_logprobs``; the chosen one may be among them.
    """

    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


BACKGROUND_RANK = 2
"""From this ``class_rank`` on nobody waits for a request's next token."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt to continue.

    ``deadline`` is a reading of the engine's own monotonic clock in seconds, or None. ``emitted`` are the output tokens
    of an earlier attempt and ``emitted_deltas`` the texts that were shown of them: the request goes on after them
    exactly as if it had never stopped; if it asks for logprobs, ``emitted_logprobs`` are theirs. It is handed back
    once it has ``pause_after`` tokens more. Only requests of the same ``cache_salt`` share what the KV cache holds.
    Those of a lower ``class_rank`` go before those of a higher, except before the oldest of all.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deadline: float | None = None
    emitted: tuple[int, ...] = ()
    emitted_deltas: tuple[str, ...] = ()
    emitted_logprobs: tuple[TokenLogprobs, ...] = ()
    pause_after: int | None = None
    cache_salt: str = ""
    class_rank: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that became certain in one step for one request, never half a character and never part of a stop string.

    ``seq`` counts a request's deltas from 1 without a hole, those of earlier attempts too; ``token_ids`` are the tokens
    that the text came from, and ``logprobs`` theirs if the request asks.
    """

    request_id: str
    seq: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """What was shown of a request so far, to go on from: one text and its tokens for each delta since the first.

    ``logprobs`` are those of all the tokens together, if the request asks.
    """

    deltas: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a request. Times are seconds of the engine's clock since the request was submitted to it.

    ``token_ids`` are all tokens that were generated, the end-of-sequence token and the tokens of a stop string too;
    ``logprobs`` has one for each if the request asks. ``deltas`` are the texts of every Delta that was emitted, in
    order; joined they are ``text``. ``delta_token_ids`` are the tokens of each. All of them begin with what earlier
    attempts emitted. ``num_cached_tokens`` of the prompt were in the KV cache and not computed again.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    deltas: tuple[str, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    queued_s: float
    first_token_s: float | None
    total_s: float
    delta_token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached_tokens: int = 0

    @property
    def progress(self) -> Progress:
        """What another attempt goes on from."""
        num_shown = sum(map(len, self.delta_token_ids))
        return Progress(self.deltas, self.delta_token_ids, self.logprobs[:num_shown])


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Inputs to encode, each a whole sequence of tokens. ``dimensions`` None: as many as the model has.

    ``deadline`` and ``class_rank`` are as in ``EngineRequest``.
    """

    id: str
    inputs: tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    deadline: float | None = None
    class_rank: int = 0

    @property
    def num_tokens(self) -> int:
        """The tokens of all inputs."""
        return sum(map(len, self.inputs))


@dataclass(frozen=True, slots=True)
class EncodeRow:
    """One input of a request, on its way through the model."""

    request_id: str
    tokens: tuple[int, ...]
    dimensions: int | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """The end of an encode request. Times are seconds of the engine's clock since the request was submitted to it.

    ``vectors`` has one for each input if the reason is STOP, and is empty otherwise: little-endian float32.
    ``num_tokens`` were computed.
    """

    request_id: str
    vectors: tuple[bytes, ...]
    finish_reason: FinishReason
    num_tokens: int
    total_s: float


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A reading of the engine's counters, for health, Flower and metrics."""

    steps: int
    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    max_slots: int
    prompt_tokens: int
    output_tokens: int
    completed: int
    failed: int
    preempted: int
    cached_tokens: int  # prompt tokens that were found in the KV cache
    evicted_blocks: int  # blocks that could have been found again, and were needed for something else
    drafted_tokens: int  # guesses at next tokens that were checked
    accepted_tokens: int  # those that were right
    mean_batch: float  # decode rows per step that decoded, since the start
    peak_batch: int  # the most rows of one step, prefill chunks included
    last_step_age_s: float  # since the last step ended, 0 when idle
    recent_batches: tuple[int, ...] = field(default=())  # rows of the last steps, newest last, for drawing occupancy


class EngineError(Exception):
    """The request has no completion: ``code`` is the job error code, ``retryable`` says if another try may help.

    ``progress`` is what was shown until then, None for a request that never came in.
    """

    code = "engine_error"
    retryable = False
    progress: Progress | None = None


class RequestInvalid(EngineError):
    """The request can never be computed as it is: an empty prompt, no tokens to generate, an id that is in use."""

    code = "invalid_value"


class RequestTooLong(EngineError):
    """The prompt and its ``max_tokens`` can never fit the context window or the KV pool."""

    code = "context_length_exceeded"


class CheckpointMismatch(EngineError):
    """The emitted tokens do not make the emitted texts, as with another tokenizer: only a new beginning is right."""

    code = "checkpoint_mismatch"
    retryable = True


class NumericalError(EngineError):
    """The model's logits for this request were not finite."""

    code = "numerical_error"


class GrammarStuck(EngineError):
    """No token of the model could follow within the request's grammar."""

    code = "grammar_stuck"


class EngineStopped(EngineError):
    """The engine is stopping or has died; the request may be tried elsewhere."""

    code = "worker_lost"
    retryable = True


class StepFailed(EngineError):
    """The runner raised when it ran this request, alone; the runner's own error is the ``__cause__``."""

    code = "worker_lost"
    retryable = True


class OutOfMemory(StepFailed):
    """The request alone needed more memory in a step than the device has."""

    code = "out_of_memory"
