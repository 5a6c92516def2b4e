"""A request inside the engine: what is generated, cached and shown of it so far. It knows neither queue nor pool."""

from collections.abc import Sequence

from models.engine.requests import (
    CheckpointMismatch,
    Completion,
    Delta,
    EngineRequest,
    FinishReason,
    Progress,
    TokenLogprobs,
)
from models.engine.runner import Sampled
from models.engine.sequences.prefix_hash import PrefixNames, slice_of
from models.engine.sequences.stop_strings import Detokenizer, OutputText


class LiveRequest:
    """One request from submission to outcome.

        prompt + output = | in the KV cache (num_cached) | pending |

    Preemption sets ``num_cached`` to 0 and takes the blocks; everything else survives it, so that the recomputed
    request goes on where it was. One that goes on after an earlier attempt looks like one that was preempted: its
    emitted tokens went through detokenizer and stop strings as if they had been sampled here. Times are readings of
    the engine's clock.
    """

    def __init__(self, request: EngineRequest, detokenizer: Detokenizer, eos: frozenset[int], now: float) -> None:
        """Raise CheckpointMismatch if the emitted tokens do not make the emitted texts."""
        self.request = request
        self.output: list[int] = []
        self.blocks: list[int] = []
        self.num_cached = 0
        self.num_named = 0  # of its blocks, those from the first on whose names the pool was told
        self.num_found = 0  # prompt tokens that others had computed when the request began
        self.was_preempted = False
        self.place = 0, 0  # in the scheduler's order, least first
        self.ending: FinishReason | None = None  # somebody outside wants it to end, and why
        self.submitted_at = now
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self._eos = frozenset() if request.sampling.ignore_eos else eos
        self._names = PrefixNames(request.cache_salt)
        self._text = OutputText(detokenizer, request.sampling.stop)
        self._unshown = ""
        self._deltas: list[str] = []
        self._delta_tokens: list[tuple[int, ...]] = []
        self._num_shown_tokens = 0
        self._num_text_tokens = 0  # of the output, those up to the last that made text
        self.shown_at: float | None = None
        self._logprobs: list[TokenLogprobs] = []  # one for each token of the output, if the request asks
        self._is_closed = False
        if request.emitted or request.emitted_deltas:
            self._go_on()

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.request.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        """Known tokens that have not entered the model since the last start."""
        return self.num_tokens - self.num_cached

    @property
    def is_decoding(self) -> bool:
        """True if only the newest generated token is pending."""
        return self.num_pending == 1 and bool(self.output)

    @property
    def max_tokens(self) -> int:
        """The most tokens that the request may ever have, prompt and output."""
        return len(self.request.prompt) + self.request.sampling.max_tokens

    def pending(self, count: int) -> tuple[int, ...]:
        """Return the next ``count`` pending tokens."""
        if self.is_decoding:
            return (self.output[-1],)
        return slice_of(self.request.prompt, self.output, self.num_cached, self.num_cached + count)

    def block_names(self, count: int, block_tokens: int) -> list[bytes]:
        """Return the names of the first ``count`` blocks, which known tokens fill."""
        return self._names.first(count, self.request.prompt, self.output, block_tokens)

    def note_found(self, num_tokens: int) -> int:
        """Take note of tokens that need not be computed, and return how many of them are a new find in the prompt.

        A request that comes back finds its own.
        """
        if self.was_preempted:
            return 0
        new = min(num_tokens, len(self.request.prompt) - self.num_found)
        self.num_found += new
        return new

    def start(self, now: float) -> None:
        """Note that a part of the request enters the model."""
        if self.started_at is None:
            self.started_at = now

    def forced_end(self, now: float) -> FinishReason | None:
        """Return why the request must end whatever its tokens are, or None."""
        if self.ending is not None:
            return self.ending
        deadline = self.request.deadline
        return FinishReason.DEADLINE if deadline is not None and now >= deadline else None

    def add(self, token: int, now: float, logprobs: Sequence[TokenLogprobs] = ()) -> FinishReason | None:
        """Take a sampled token, with its logprobs if the request asks.

        Returns why the request ends with it, or None if it goes on.
        """
        if self.first_token_at is None:
            self.first_token_at = now
        self._logprobs += logprobs
        reason = self._take(token)
        return FinishReason.HANDED_BACK if reason is None and self._is_pause_due else reason

    def take(self, sampled: Sampled, now: float) -> FinishReason | None:
        """Take all that a pass gave, up to the token with which the request ends; return why it ends, or None.

        The drafts that were accepted are in the cache already.
        """
        for index, token in enumerate(sampled.tokens):
            reason = self.add(token, now, sampled.logprobs[index : index + 1])
            if reason is not None:
                return reason
            self.num_cached += index < len(sampled.accepted)
        return None

    def close(self, reason: FinishReason) -> FinishReason:
        """Let go of the text that was held back; if that completes a stop string, the length was not the reason.

        The text of a request that is handed back is not at its end, and what is held of it is for the next attempt.
        """
        if reason is not FinishReason.HANDED_BACK and not self._is_closed:
            self._is_closed = True
            self._add_text(self._text.flush())
        return FinishReason.STOP if reason is FinishReason.LENGTH and self._text.stopped else reason

    def take_delta(self, now: float | None = None) -> Delta | None:
        """Return the text that became certain since the last call, or None if none did.

        Its tokens are those up to the last that made text, so that whoever emits them again gets to the same text.
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
    def progress(self) -> Progress:
        """What was shown so far."""
        return Progress(tuple(self._deltas), tuple(self._delta_tokens), tuple(self._logprobs[: self._num_shown_tokens]))

    def completion(self, reason: FinishReason, now: float) -> Completion:
        """Sum up a request whose last delta was taken."""
        started_at = now if self.started_at is None else self.started_at
        return Completion(
            request_id=self.id,
            text="".join(self._deltas),
            token_ids=tuple(self.output),
            deltas=tuple(self._deltas),
            finish_reason=reason,
            num_prompt_tokens=len(self.request.prompt),
            num_cached_tokens=self.num_found,
            queued_s=started_at - self.submitted_at,
            first_token_s=None if self.first_token_at is None else self.first_token_at - self.submitted_at,
            total_s=now - self.submitted_at,
            delta_token_ids=tuple(self._delta_tokens),
            logprobs=tuple(self._logprobs),
        )

    @property
    def _is_pause_due(self) -> bool:
        pause_after = self.request.pause_after
        return pause_after is not None and len(self.output) - len(self.request.emitted) >= pause_after

    def _take(self, token: int) -> FinishReason | None:
        self.output.append(token)
        if token in self._eos:
            return FinishReason.STOP
        self._add_text(self._text.add(token))
        if self._text.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.request.sampling.max_tokens else None

    def _add_text(self, text: str) -> None:
        if text:
            self._unshown += text
            self._num_text_tokens = len(self.output)

    def _go_on(self) -> None:
        """Emit again what was emitted. If the last of it was the request's end, that is all there is to do."""
        if self.request.sampling.logprobs is not None:
            if len(self.request.emitted_logprobs) != len(self.request.emitted):
                raise CheckpointMismatch("the tokens of the earlier attempt have lost their logprobs")
            self._logprobs += self.request.emitted_logprobs
        for token in self.request.emitted:
            if self.ending is not None:
                raise CheckpointMismatch("there are tokens beyond the end of the request")
            self.ending = self._emit_again(token)
        if self._num_shown_tokens != len(self.output) or tuple(self._deltas) != self.request.emitted_deltas:
            raise CheckpointMismatch("the tokens of the earlier attempt do not make its texts")

    def _emit_again(self, token: int) -> FinishReason | None:
        try:
            reason = self._take(token)
            end = None if reason is None else self.close(reason)
        except Exception as error:
            raise CheckpointMismatch("the tokens of the earlier attempt cannot be turned into text") from error
        # However many tokens a delta took then, it takes now.
        shown = len(self._deltas)
        if self._unshown in self.request.emitted_deltas[shown : shown + 1]:
            self.take_delta()
        return end
