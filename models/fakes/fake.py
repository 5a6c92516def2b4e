"""A language model without weights: deterministic English words, and a runner that verifies the scheduler.

It ships with the product, for demonstrations, load tests and tests without torch. Its KV cache holds the tokens. Every
next token is computed from the tokens in the cache, read through the block table of the request. The cache also holds a
history for each token: a hash of all tokens before it and of the cache salt, as real keys and values depend on both. So
the text is wrong if the scheduler loses a block, confuses two blocks, or shares a block that it must not share. The
runner also checks the rules of each plan before it runs the plan.
"""

import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise

from headrace.models.engine.reasoning import ReasoningTracker
from headrace.models.engine.requests import EngineRequest, Grammar, RequestId, RequestInvalid, SampledLogprobs
from headrace.models.engine.runner import Row, Sampled, StepPlan
from headrace.prompts.grammar import Grammars, Matcher
from headrace.store.errors import InvalidRequest

EOS = 256
"""The tokens 0 to 255 are bytes; this one ends a sequence."""

_VOCABULARY = (
    "a the water wheel river stone bridge mill gate channel stream turns holds carries rises falls waits flows under "
    "over past into from slow quick bright cold deep still open old new first last every morning evening hill valley "
    "field road house light grain bread hand rope oak iron spring winter and while until"
)
_WORDS = tuple(word.encode() for word in _VOCABULARY.split())


_NAN = -1  # the history of a token that was computed from NaN


class PlanError(AssertionError):
    """The plan breaks the contract between scheduler and runner."""


class FakeRunner:
    """A ``Runner`` over bytes: words up to a length that depends on the prompt, then the end of the sequence.

    With a grammar it generates a short text that the grammar accepts. Every other token has probability 1, so that
    temperature, penalties, ``min_p`` and ``logit_bias`` change nothing.

    A step takes ``step_s``. ``fault`` gets each plan before it is computed and may raise the error of a device.
    ``is_finite`` returns False for a row with logits of NaN.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 1024,
        block_tokens: int = 16,
        context_window: int = 8192,
        spare_tokens: int = 0,
        lookahead_tokens: int = 0,
        step_s: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
        fault: Callable[[StepPlan], None] | None = None,
        is_finite: Callable[[Row], bool] | None = None,
    ) -> None:
        self.context_window = context_window
        self.eos_token_ids = frozenset({EOS})
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.spare_tokens = spare_tokens
        self.lookahead_tokens = lookahead_tokens
        self.default_settings: Mapping[str, int] = {}
        self.step_s = step_s
        self.sleep = sleep
        self.fault = fault
        self._is_finite = is_finite
        self._cache = [[-1] * block_tokens for _ in range(num_blocks)]
        self._written = [[0] * block_tokens for _ in range(num_blocks)]
        self._histories: dict[RequestId, list[int]] = {}
        self._grammars = Grammars(None, vocab_size=EOS + 1, eos_token_ids=self.eos_token_ids)
        self._matchers: dict[RequestId, Matcher] = {}

    def run(self, plan: StepPlan) -> list[Sampled]:
        """Check the plan, write its tokens into the cache, and return the next token of each row with ``sample``.

        Raises PlanError if the plan breaks the contract.
        """
        self._check(plan)
        if self.fault is not None:
            self.fault(plan)
        if self.step_s:
            self.sleep(self.step_s)
        broken = {row.request.id for row in plan.rows if self._is_finite is not None and not self._is_finite(row)}
        for row in plan.rows:
            self._write(row, is_finite=row.request.id not in broken)
        reported = [row for row in plan.rows if row.sample or row.request.id in broken]
        return [_not_finite(row) if row.request.id in broken else self._sample(row) for row in reported]

    def check(self, request: EngineRequest) -> None:
        """Raise RequestInvalid if the grammar of the request cannot be followed."""
        grammar = request.sampling.grammar
        try:
            if grammar is not None:
                self._grammars.check(grammar.kind, grammar.text)
        except InvalidRequest as error:
            raise RequestInvalid(error.message) from error

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request that has ended."""
        self._histories.pop(request_id, None)
        self._matchers.pop(request_id, None)

    def _write(self, row: Row, *, is_finite: bool) -> None:
        end = row.start + len(row.tokens)
        history = self._history(row, end - len(row.drafts))
        # The histories of drafts depend on earlier drafts. They are not part of the request's history yet.
        history += _histories(history[-1], row.drafts)
        for position, token in enumerate(row.tokens, row.start):
            block, offset = row.blocks[position // self.block_tokens], position % self.block_tokens
            self._cache[block][offset] = token
            self._written[block][offset] = history[position] if is_finite else _NAN

    def _read(self, cache: list[list[int]], row: Row, end: int) -> list[int]:
        """Return the values in ``cache`` for the positions of a row before ``end``."""
        values = [value for block in row.blocks for value in cache[block]]
        return values[:end]

    def _history(self, row: Row, end: int) -> list[int]:
        """Return the histories of the positions of a row before ``end``."""
        known = self._histories.setdefault(row.request.id, [])
        if len(known) < end:
            last = known[-1] if known else hash(row.request.cache_salt)
            known += _histories(last, (*row.request.prompt, *row.output)[len(known) : end])
        return known[:end]

    def _sample(self, row: Row) -> Sampled:
        """Return the next token, and the following ones as long as the drafts are equal to them."""
        num_known = row.start + len(row.tokens) - len(row.drafts)
        tokens = self._read(self._cache, row, num_known + len(row.drafts))
        chosen: list[int] = []
        for num_drafts in range(len(row.drafts) + 1):
            chosen.append(self._next(row, tokens[: num_known + num_drafts]))
            if chosen != tokens[num_known : num_known + len(chosen)]:
                break
        logprobs = tuple(each for token in chosen for each in _certain(row, token))
        scored = row.request.prompt[1:] if row.scores_prompt else ()
        return Sampled(
            row.request.id,
            chosen[-1],
            accepted=tuple(chosen[:-1]),
            logprobs=logprobs,
            prompt_logprobs=tuple(each for token in scored for each in _certain(row, token)),
        )

    def _next(self, row: Row, tokens: Sequence[int]) -> int:
        num_prompt = len(row.request.prompt)
        prompt, output = tokens[:num_prompt], tokens[num_prompt:]
        sampling = row.request.sampling
        if row.request.reasoning is not None:
            tracker = ReasoningTracker(row.request.reasoning)
            tracker.follow(output)
            if tracker.forced is not None:
                return tracker.forced
            if tracker.answer_at is None:
                return next_token(prompt, output, ends=False)
            output = output[tracker.answer_at :] if sampling.grammar is not None else output
        if sampling.grammar is not None:
            return self._next_within(sampling.grammar, row.request.id, output)
        return next_token(prompt, output, ends=not sampling.ignore_eos and len(output) >= (sampling.min_tokens or 0))

    def _next_within(self, grammar: Grammar, request_id: RequestId, output: Sequence[int]) -> int:
        """Return a token that the grammar allows. The end of the sequence is preferred."""
        matcher = self._matchers.get(request_id)
        if matcher is None:
            matcher = self._matchers[request_id] = self._grammars.matcher(grammar.kind, grammar.text)
        matcher.follow(output)
        bits = int.from_bytes(matcher.masks()[0], "little")
        allowed = [token for token in range(EOS + 1) if bits >> token & 1]
        # In a string, a bracket closes nothing.
        ends = (EOS, *(b'"' if ord("~") in allowed else b'}]"'))
        return next((end for end in ends if end in allowed), allowed[len(output) * 7 % len(allowed)])

    def _check(self, plan: StepPlan) -> None:
        _require(bool(plan.rows), "a step has rows")
        _require(_all_different([row.request.id for row in plan.rows]), "a request has one row")
        self._check_sharing(plan)
        _require(all(a.is_decode >= b.is_decode for a, b in pairwise(plan.rows)), "decode rows come first")
        for row in plan.rows:
            self._check_row(row)

    def _check_sharing(self, plan: StepPlan) -> None:
        """Check that no row writes to a block that is in the block table of another row."""
        owners = Counter(block for row in plan.rows for block in row.blocks)
        if len(owners) == sum(owners.values()):
            return
        for row in plan.rows:
            _require(_all_different(row.blocks), "a row has each block once")
            to_write = row.blocks[row.start // self.block_tokens :]
            _require(all(owners[block] == 1 for block in to_write), "a block that is written has one owner")

    def _check_row(self, row: Row) -> None:
        known = [*row.request.prompt, *row.output, *row.drafts]
        end = row.start + len(row.tokens)
        _require(len(row.tokens) > len(row.drafts), "a row has tokens")
        _require(row.is_decode or not row.drafts, "only a decode row has drafts")
        _require(list(row.tokens) == known[row.start : end], "a row continues what is known")
        _require(row.sample == (end == len(known)), "the newest token, and no other, chooses the next one")
        num_output = len(row.output) + len(row.drafts)
        _require(num_output < max(1, row.request.sampling.max_tokens), "no row goes on past max_tokens")
        _require(all(0 <= block < self.num_blocks for block in row.blocks), "blocks are in the pool")
        _require(len(row.blocks) * self.block_tokens >= end, "the block table covers the row")
        written = self._read(self._written, row, row.start)
        _require(0 not in written, "positions follow one another")
        _require(written == self._history(row, row.start), "the row's blocks hold what it would have written")


def next_token(prompt: Sequence[int], output: Sequence[int], *, ends: bool = True) -> int:
    """Return the token after ``prompt`` and ``output``, a function of these only. ``ends`` allows the end token."""
    begun = bytes(output).rsplit(b" ", 1)[-1]
    word = _WORDS[_hash(prompt, output[: len(output) - len(begun)]) % len(_WORDS)]
    if len(begun) < len(word):
        return word[len(begun)]
    return EOS if ends and len(output) >= _natural_length(prompt) else ord(" ")


def _certain(row: Row, token: int) -> tuple[SampledLogprobs, ...]:
    """Return the logprobs for a row that requests them: the token has probability 1."""
    count = row.request.sampling.logprobs
    return () if count is None else (SampledLogprobs(0.0, (token,)[:count], (0.0,)[:count]),)


def _histories(last: int, tokens: Sequence[int]) -> list[int]:
    """Return the histories of ``tokens``. ``last`` is the history of the token before them."""
    found = []
    for token in tokens:
        last = hash((last, token))
        found.append(last)
    return found


def _natural_length(prompt: Sequence[int]) -> int:
    return 8 + _hash(prompt) % 120


def _hash(*parts: Sequence[int]) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(array("q", (len(part), *part)).tobytes())
    return int.from_bytes(digest.digest())


def _not_finite(row: Row) -> Sampled:
    return Sampled(row.request.id, None, finite=False)


def _all_different(values: Sequence[object]) -> bool:
    return len(set(values)) == len(values)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise PlanError(f"the plan breaks a rule: {rule}")
