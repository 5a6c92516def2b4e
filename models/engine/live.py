"""A request inside the engine: what is generated, cached and shown of it so far. It knows neither queue nor pool."""

from models.engine.requests import Completion, Delta, EngineRequest, FinishReason
from models.engine.stopping import Detokenizer, OutputText


class LiveRequest:
    """One request from submission to outcome.

        prompt + output = | in the KV cache (num_cached) | pending |

    Preemption sets ``num_cached`` to 0 and takes the blocks; everything else survives it, so that the recomputed
    request goes on where it was. Times are readings of the engine's clock.
    """

    def __init__(self, request: EngineRequest, detokenizer: Detokenizer, eos: frozenset[int], now: float) -> None:
        self.request = request
        self.output: list[int] = []
        self.blocks: list[int] = []
        self.num_cached = 0
        self.ending: FinishReason | None = None  # somebody outside wants it to end, and why
        self.submitted_at = now
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self._eos = frozenset() if request.sampling.ignore_eos else eos
        self._text = OutputText(detokenizer, request.sampling.stop)
        self._unshown = ""
        self._deltas: list[str] = []
        self._num_shown_tokens = 0

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
        num_prompt = len(self.request.prompt)
        begin, end = self.num_cached, self.num_cached + count
        return (*self.request.prompt[begin:end], *self.output[max(0, begin - num_prompt) : max(0, end - num_prompt)])

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

    def add(self, token: int, now: float) -> FinishReason | None:
        """Take a sampled token, and return why the request ends with it, or None if it goes on."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.output.append(token)
        if token in self._eos:
            return FinishReason.STOP
        self._unshown += self._text.add(token)
        if self._text.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) >= self.request.sampling.max_tokens else None

    def close(self, reason: FinishReason) -> FinishReason:
        """Let go of the text that was held back; if that completes a stop string, the length was not the reason."""
        self._unshown += self._text.flush()
        return FinishReason.STOP if reason is FinishReason.LENGTH and self._text.stopped else reason

    def take_delta(self) -> Delta | None:
        """Return the text that became certain since the last call, or None if none did."""
        if not self._unshown:
            return None
        text, self._unshown = self._unshown, ""
        tokens = tuple(self.output[self._num_shown_tokens :])
        self._num_shown_tokens = len(self.output)
        self._deltas.append(text)
        return Delta(self.id, len(self._deltas), text, tokens)

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
            queued_s=started_at - self.submitted_at,
            first_token_s=None if self.first_token_at is None else self.first_token_at - self.submitted_at,
            total_s=now - self.submitted_at,
        )
