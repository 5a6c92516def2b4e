"""The state of a request in the engine. A generating one has tokens, KV blocks and their hashes, and the shown text."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from headrace.models.engine.reasoning import ReasoningTracker
from headrace.models.engine.requests import (
    UNKNOWN_TOKEN,
    CheckpointMismatch,
    CompletionOutput,
    Delta,
    EmittedOutput,
    EncodeRequest,
    EngineRequest,
    FinishReason,
    RequestId,
    SampledLogprobs,
)
from headrace.models.engine.runner import Sampled
from headrace.models.engine.stop_strings import OutputText, TokenDecoder

HASH_BYTES = 16


class ActiveRequest:
    """The part that is the same for each kind of request, from submission to outcome.

    Times are readings of the engine's clock, in seconds.
    """

    request: EngineRequest | EncodeRequest

    def __init__(self, now: float) -> None:
        self.submitted_at = now
        self.group: RequestId | None = None
        self.ending: FinishReason | None = None  # set from outside: end before the next step, for this reason

    @property
    def id(self) -> RequestId:
        """The request's id."""
        return self.request.id

    @property
    def progress(self) -> EmittedOutput:
        """The output that was shown so far."""
        return EmittedOutput()

    @property
    def has_begun(self) -> bool:
        """True unless it is certain that the request was in no step yet."""
        return True

    def forced_end(self, now: float) -> FinishReason | None:
        """Return why the request must end before the next step, or None."""
        if self.ending is not None:
            return self.ending
        deadline = self.request.deadline
        return FinishReason.DEADLINE if deadline is not None and now >= deadline else None


class BlockHasher:
    """The hashes of one request's full KV blocks, computed when they are needed.

        salt ──▶ root ──┬─▶ hash 0 ──┬─▶ hash 1 ──▶ …        each: digest of the previous hash and the block's tokens
              tokens 0 ─┘  tokens 1 ─┘

    Equal hashes mean equal keys and values. A block's keys and values depend on all tokens before it, and so does its
    hash. The salt is part of every hash: requests with different salts share no blocks, so a tenant cannot find out
    another tenant's prompts by timing its guesses. So is the key of an adapter, which changes the numbers. The digests
    are cryptographic and 128 bits long; tokens are not compared again when a hash is found.
    """

    def __init__(self, salt: str, adapter_key: str = "") -> None:
        self._root = blake2b(salt.encode(), digest_size=HASH_BYTES, person=b"salt").digest()
        if adapter_key:
            own = self._root + adapter_key.encode()
            self._root = blake2b(own, digest_size=HASH_BYTES, person=b"adapter").digest()
        self._hashes: list[bytes] = []

    def first(self, count: int, prompt: Sequence[int], output: Sequence[int], block_tokens: int) -> list[bytes]:
        """Return the hashes of the first ``count`` blocks of ``prompt`` and ``output`` together."""
        hashes = self._hashes
        while len(hashes) < count:
            tokens = slice_of(prompt, output, len(hashes) * block_tokens, (len(hashes) + 1) * block_tokens)
            parent = hashes[-1] if hashes else self._root
            hashes.append(blake2b(parent + array("q", tokens).tobytes(), digest_size=HASH_BYTES).digest())
        return hashes[:count]


def slice_of(prompt: Sequence[int], output: Sequence[int], begin: int, end: int) -> tuple[int, ...]:
    """Return tokens ``begin`` up to ``end`` of ``prompt`` followed by ``output``."""
    num_prompt = len(prompt)
    if end <= num_prompt:
        return tuple(prompt[begin:end])
    return (*prompt[begin:end], *output[max(0, begin - num_prompt) : end - num_prompt])


class SequenceState(ActiveRequest):
    """One generating request from submission to outcome.

        prompt + output = | in the KV cache (num_cached) | pending |

    Preemption takes the blocks and sets ``num_cached`` to 0; everything else stays, so the recomputed request continues
    where it was. A request that continues an earlier attempt looks like a preempted one: its emitted tokens go through
    the detokenizer and the stop strings as if they had been sampled here. Times are readings of the engine's clock.
    """

    def __init__(self, request: EngineRequest, detokenizer: TokenDecoder, eos: frozenset[int], now: float) -> None:
        """Raise CheckpointMismatch if the emitted tokens do not make the emitted texts."""
        super().__init__(now)
        self.request: EngineRequest = request
        self.group = request.group
        self.output: list[int] = []
        self.blocks: list[int] = []
        self.num_cached = 0
        self.num_registered = 0  # leading blocks that are registered in the pool
        self.num_found = 0  # prompt tokens that were in the prefix cache when the request began
        self.was_preempted = False
        self.order_key = 0, 0  # in the scheduler, lowest first
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        own = frozenset(request.sampling.stop_token_ids or ())
        self._eos = frozenset() if request.sampling.ignore_eos else eos
        self._answer_eos = self._eos | own
        self._reasoning = None if request.reasoning is None else ReasoningTracker(request.reasoning)
        self._hasher = BlockHasher(request.cache_salt, "" if request.adapter is None else request.adapter.key)
        self._text = OutputText(detokenizer, request.sampling.stop)
        self._unshown = ""
        self._deltas: list[str] = []
        self._delta_tokens: list[tuple[int, ...]] = []
        self._num_shown_tokens = 0
        self._num_text_tokens = 0  # output tokens up to the last one that produced text
        self.shown_at: float | None = None
        self._logprobs: list[SampledLogprobs] = []  # one for each token of the output, if the request asks
        self.prompt_logprobs: tuple[SampledLogprobs, ...] = ()
        self.reported_prompt_tokens: int | None = None  # as an inference server without token ids counts them
        self.reported_output_tokens: int | None = None
        self.reported_reasoning_tokens: int | None = None
        self._is_closed = False
        if request.emitted or request.emitted_deltas:
            self._replay()

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        """Known tokens that are not in the KV cache."""
        return self.num_tokens - self.num_cached

    @property
    def is_decoding(self) -> bool:
        """True if only the newest generated token is pending."""
        return self.num_pending == 1 and bool(self.output)

    @property
    def is_scoring_prompt(self) -> bool:
        """True until the logprobs of the prompt that the request asks for are known; one token has none."""
        return self.request.sampling.scores_prompt and not self.prompt_logprobs and len(self.request.prompt) > 1

    @property
    def reasoning(self) -> ReasoningTracker | None:
        """The state of the reasoning, None if all of the output is the answer."""
        return self._reasoning

    @property
    def is_answering(self) -> bool:
        """False before the answer has begun."""
        return self._reasoning is None or self._reasoning.answer_at is not None

    @property
    def max_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        return len(self.request.prompt) + self.request.sampling.max_tokens

    def pending(self, count: int) -> tuple[int, ...]:
        """Return the next ``count`` pending tokens."""
        if self.is_decoding:
            return (self.output[-1],)
        return slice_of(self.request.prompt, self.output, self.num_cached, self.num_cached + count)

    def block_hashes(self, count: int, block_tokens: int) -> list[bytes]:
        """Return the hashes of the first ``count`` blocks, which known tokens fill."""
        return self._hasher.first(count, self.request.prompt, self.output, block_tokens)

    def note_found(self, num_tokens: int) -> int:
        """Count ``num_tokens`` found in the prefix cache; return how many of them are new finds of the prompt.

        A preempted request finds its own blocks again, which is no new find.
        """
        if self.was_preempted:
            return 0
        new = min(num_tokens, len(self.request.prompt) - self.num_found)
        self.num_found += new
        return new

    def start(self, now: float) -> None:
        """Note when the first tokens of the request enter the model."""
        if self.started_at is None:
            self.started_at = now

    def add(self, token: int, now: float, logprobs: Sequence[SampledLogprobs] = ()) -> FinishReason | None:
        """Append a sampled token, with its logprobs if the request asks for them.

        Returns why the request ends with this token, or None if it continues.
        """
        if self.first_token_at is None:
            self.first_token_at = now
        if not self.request.sampling.max_tokens:
            return FinishReason.LENGTH  # only the prompt is asked for
        self._logprobs += logprobs
        reason = self._append(token)
        return FinishReason.HANDED_BACK if reason is None and self._is_pause_due else reason

    def add_text(self, text: str, now: float, num_output: int, *, is_answer: bool = True) -> FinishReason | None:
        """Append text without token ids. Returns STOP if a stop string ends the request with it, otherwise None.

        ``num_output``: the tokens of the output with this text.
        """
        if self.first_token_at is None:
            self.first_token_at = now
        self.output += [UNKNOWN_TOKEN] * (num_output - len(self.output))
        self._add_text(self._text.add_text(text, is_answer=is_answer))
        return FinishReason.STOP if self._text.stopped else None

    def take(self, sampled: Sampled, now: float) -> FinishReason | None:
        """Append the tokens of a pass, up to the one with which the request ends; return why it ends, or None.

        Accepted drafts are in the KV cache already.
        """
        self.prompt_logprobs = self.prompt_logprobs or sampled.prompt_logprobs
        for index, token in enumerate(sampled.tokens):
            reason = self.add(token, now, sampled.logprobs[index : index + 1])
            if reason is not None:
                return reason
            self.num_cached += index < len(sampled.accepted)
        return None

    def close(self, reason: FinishReason) -> FinishReason:
        """Release the text that was held back, and return the final reason.

        STOP replaces LENGTH if the released text completes a stop string. The text of a request that is handed back is
        not at its end: the next attempt produces the held text again.
        """
        if reason is not FinishReason.HANDED_BACK and not self._is_closed:
            self._is_closed = True
            self._add_text(self._text.flush())
        return FinishReason.STOP if reason is FinishReason.LENGTH and self._text.stopped else reason

    def take_delta(self, now: float | None = None) -> Delta | None:
        """Return the text that became certain since the last call, or None if there is none.

        Its tokens end with the last one that produced text: an attempt that replays them produces the same text.
        """
        if not self._unshown:
            return None
        text, self._unshown = self._unshown, ""
        tokens = tuple(self.output[self._num_shown_tokens : self._num_text_tokens])
        logprobs = tuple(self._logprobs[self._num_shown_tokens : self._num_text_tokens])
        self._num_shown_tokens = self._num_text_tokens
        self.shown_at = now
        self._deltas.append(text)
        self._delta_tokens.append(tokens)
        return Delta(self.id, len(self._deltas), text, tokens, logprobs)

    @property
    def progress(self) -> EmittedOutput:
        """The output that was shown so far."""
        return EmittedOutput(
            tuple(self._deltas),
            tuple(self._delta_tokens),
            tuple(self._logprobs[: self._num_shown_tokens]),
            self._first_token_s,
        )

    @property
    def has_begun(self) -> bool:
        """True once tokens of the request were in a step."""
        return self.started_at is not None

    @property
    def _first_token_s(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.submitted_at

    def completion(self, reason: FinishReason, now: float) -> CompletionOutput:
        """Return the result of a request; its last delta must be taken before."""
        started_at = now if self.started_at is None else self.started_at
        return CompletionOutput(
            request_id=self.id,
            text="".join(self._deltas),
            token_ids=tuple(self.output),
            deltas=tuple(self._deltas),
            finish_reason=reason,
            num_prompt_tokens=(
                len(self.request.prompt) if self.reported_prompt_tokens is None else self.reported_prompt_tokens
            ),
            num_cached_tokens=self.num_found,
            queued_s=started_at - self.submitted_at,
            first_token_s=self._first_token_s,
            total_s=now - self.submitted_at,
            delta_token_ids=tuple(self._delta_tokens),
            logprobs=tuple(self._logprobs),
            reported_output_tokens=self.reported_output_tokens,
            stop_text=self._text.stop_text,
            prompt_logprobs=self.prompt_logprobs,
            num_reasoning_tokens=self._num_reasoning_tokens,
        )

    @property
    def _num_reasoning_tokens(self) -> int:
        own = 0 if self._reasoning is None else self._reasoning.num_tokens
        return own if self.reported_reasoning_tokens is None else self.reported_reasoning_tokens

    @property
    def _is_pause_due(self) -> bool:
        pause_after = self.request.pause_after
        return pause_after is not None and len(self.output) - len(self.request.emitted) >= pause_after

    def _append(self, token: int) -> FinishReason | None:
        self.output.append(token)
        is_answer = self._is_answer(token)
        if token in (self._answer_eos if is_answer else self._eos):
            return FinishReason.STOP
        self._add_text(self._text.add(token, is_answer=is_answer))
        if self._text.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.request.sampling.max_tokens else None

    def _is_answer(self, token: int) -> bool:
        """Return True if the newest token is a part of the answer, and not the last of the marks before it."""
        if self._reasoning is None:
            return True
        self._reasoning.add(token)
        answer_at = self._reasoning.answer_at
        return answer_at is not None and answer_at < len(self.output)

    def _add_text(self, text: str) -> None:
        if text:
            self._unshown += text
            self._num_text_tokens = len(self.output)

    def _replay(self) -> None:
        """Replay the tokens of an earlier attempt. ``ending`` is set if the last of them ends the request."""
        if self.request.sampling.logprobs is not None:
            if len(self.request.emitted_logprobs) != len(self.request.emitted):
                raise CheckpointMismatch("the tokens of the earlier attempt have lost their logprobs")
            self._logprobs += self.request.emitted_logprobs
        if UNKNOWN_TOKEN in self.request.emitted:
            # What a stop string held back was never shown: the server writes it again.
            self.output += self.request.emitted
            self._num_shown_tokens = self._num_text_tokens = len(self.output)
            self._deltas += self.request.emitted_deltas
            self._delta_tokens += [self.request.emitted, *[()] * (len(self._deltas) - 1)]
            return
        for token in self.request.emitted:
            if self.ending is not None:
                raise CheckpointMismatch("there are tokens beyond the end of the request")
            self.ending = self._replay_token(token)
        if self._num_shown_tokens != len(self.output) or tuple(self._deltas) != self.request.emitted_deltas:
            raise CheckpointMismatch("the tokens of the earlier attempt do not make its texts")

    def _replay_token(self, token: int) -> FinishReason | None:
        try:
            reason = self._append(token)
            end = None if reason is None else self.close(reason)
        except Exception as error:
            raise CheckpointMismatch("the tokens of the earlier attempt cannot be turned into text") from error
        # Cut the text into the same deltas as before.
        shown = len(self._deltas)
        if self._unshown in self.request.emitted_deltas[shown : shown + 1]:
            self.take_delta()
        return end
