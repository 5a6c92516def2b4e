"""The engine that an inference server is for the workers: requests go to the server, its tokens come back.

    submit ──▶ network thread ──▶ server
                     └─ pieces ──▶ inbox ──step──▶ text, deltas, outcomes     as in ``llm_engine``

Text, stop strings, deadlines and outcomes are decided here, so they are the same whatever the server is. A request that
ends here is aborted inside the server at once. No request is sent that the server would only queue: the backlog stays
in Postgres, where its order can still change.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

from headrace.models.engine.batching_engine import Outbox, call_out, ignore
from headrace.models.engine.generation_engine import GenerationEngine
from headrace.models.engine.requests import (
    BACKGROUND_RANK,
    CheckpointMismatch,
    CompletionOutput,
    Delta,
    EngineError,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestId,
    RequestInvalid,
    SampledLogprobs,
)
from headrace.models.engine.sequence import SequenceState
from headrace.models.engine.stop_strings import TokenDecoder
from headrace.models.external.network_thread import NetworkThread
from headrace.models.external.reasoning_part import SentPart, next_part, reasoning_part
from headrace.models.external.server_watch import ServerWatch
from headrace.models.external.upstream import Capabilities, Piece, ServerInfo, Upstream, UpstreamLost, UpstreamRequest
from headrace.prompts.answer_reader import THINK_TAGS
from headrace.prompts.tool_calls import HERMES_TAGS

_TICK_S = 0.05  # deadlines are looked at as often
_STALE_S = 2.0  # what the server said longer ago is not used
_BACKGROUND_PIECE = 8  # tokens in a piece of a request for which no client waits
_STANDING_S = 10.0  # numbers that stand still for so long, without a request of ours, are left over from an abort
_BURST = 16  # requests beyond twice the number that the server says it runs: its numbers come late
_MAX_KV_USE = 0.95  # for a server that does not say the size of its KV cache


@dataclass(frozen=True, slots=True)
class ExternalConfig:
    """Requests give the name ``model``. ``context_window`` is the version's; a server may have a smaller one.

    At most ``max_slots`` requests are sent at the same time. The server is asked for its load every ``poll_s``.
    ``deltas_per_s`` is as in ``llm_engine.EngineConfig``.
    """

    model: str
    context_window: int
    max_slots: int = 256
    deltas_per_s: float = inf
    poll_s: float = 0.25

    def __post_init__(self) -> None:
        """Raise ValueError for a configuration in which nothing could run."""
        if min(self.context_window, self.max_slots, self.deltas_per_s, self.poll_s) <= 0:
            raise ValueError(f"an engine needs a context window, slots, deltas and a poll time > 0: {self}")


class ExternalEngine(GenerationEngine):
    """Implements ``models.engine.protocol.Engine`` on an inference server.

    ``eos`` are the end-of-sequence tokens of the version. ``refuse`` returns why the version must not run on a server
    that says this of itself, or None: it is asked when the server is found, and again after it was away.
    """

    def __init__(
        self,
        upstream: Upstream,
        detokenizer: Callable[[], TokenDecoder],
        eos: frozenset[int],
        config: ExternalConfig,
        *,
        on_deltas: Callable[[list[Delta]], None],
        on_room: Callable[[], None] = ignore,
        on_failed: Callable[[BaseException], None] = ignore,
        refuse: Callable[[ServerInfo], str | None] = lambda info: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            detokenizer,
            max_slots=config.max_slots,
            deltas_per_s=config.deltas_per_s,
            on_deltas=on_deltas,
            on_room=on_room,
            on_failed=on_failed,
            clock=clock,
        )
        self._upstream = upstream
        self._eos = eos
        self._config = config
        self._inbox: deque[tuple[SequenceState, Piece | EngineError]] = deque()
        self._wake = threading.Event()
        self._num_cached_tokens = 0
        self._parts: dict[RequestId, SentPart] = {}  # of the requests that are sent in parts
        self._watch = ServerWatch(
            upstream,
            refuse=refuse,
            on_change=self._server_moved,
            on_restart=self._server_restarted,
            poll_s=config.poll_s,
            clock=clock,
        )
        self._network = NetworkThread(upstream, self._watch.run)

    @property
    def capacity_tokens(self) -> int:
        """Tokens of the longest request, prompt and ``max_tokens`` together, as far as the server says it."""
        limits = [self._config.context_window]
        seen = self._watch.latest
        if seen is not None:
            limits += [limit for limit in (seen.info.context_window, seen.load.kv_tokens) if limit]
        return min(limits)

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; known when requests are sent."""
        return self._upstream.capabilities

    @property
    def why_not(self) -> str | None:
        """Why no requests are sent: the server is away or runs something else. None if they are."""
        return self._watch.why_not if self._watch.latest is None else None

    def start(self) -> None:
        """Start the threads."""
        self._network.start()
        super().start()

    def cancel(self, request_id: RequestId, reason: FinishReason = FinishReason.CANCELLED) -> bool:
        """End a request, here and inside the server; False if it is not active. The first reason stays."""
        is_active = super().cancel(request_id, reason)
        self._wake.set()
        return is_active

    def stop(self, timeout_s: float) -> None:
        """Stop. Active requests fail with EngineStopped and are aborted inside the server."""
        self._wake.set()
        super().stop(timeout_s)
        self._network.stop(timeout_s)

    def stats(self) -> EngineStats:
        """Return the current statistics. A block of a server's KV cache counts as one token."""
        seen = self._watch.latest
        kv_tokens = 0 if seen is None else seen.load.kv_tokens or 0
        kv_use = 0.0 if seen is None else seen.load.kv_use or 0.0
        with self._changed:
            num_begun = sum(seq.first_token_at is not None for seq in self._active.values())
            return self._counters.stats(
                running=num_begun,
                waiting=len(self._active) - num_begun,
                max_slots=self._max_slots,
                last_step_age_s=self._step_age_s(),
                free_blocks=int(kv_tokens * (1 - kv_use)),
                total_blocks=kv_tokens,
                preempted=0 if seen is None else seen.load.preempted or 0,
                cached_tokens=self._num_cached_tokens,
                evicted_blocks=0,
                drafted_tokens=0,
                accepted_tokens=0,
            )

    @property
    def _num_running(self) -> int:
        return len(self._active)

    def _step(self) -> None:
        """Wait for output of the server, or for a moment; then give it to the requests."""
        self._wake.wait(_TICK_S)
        self._wake.clear()
        arrived = self._take_inbox()
        with self._locked() as outbox:
            now = self._clock()
            self._end_forced(now, outbox)
            if arrived:
                self._note_progress()
                self._counters.count_pass()
            num_rows = 0
            for seq, events in arrived.values():
                if self._active.get(seq.id) is seq:
                    num_rows += 1
                    self._take_events(seq, events, now, outbox)
            if num_rows:
                self._counters.count_batch(num_rows, num_rows)

    def _take_inbox(self) -> dict[int, tuple[SequenceState, list[Piece | EngineError]]]:
        """Return the events that have arrived, by request."""
        arrived: dict[int, tuple[SequenceState, list[Piece | EngineError]]] = {}
        for _ in range(len(self._inbox)):
            seq, event = self._inbox.popleft()
            arrived.setdefault(id(seq), (seq, []))[1].append(event)
        return arrived

    def _take_events(
        self, seq: SequenceState, events: list[Piece | EngineError], now: float, outbox: Outbox[CompletionOutput]
    ) -> None:
        """Advance a request by its new pieces; then fail it if the last event is an error."""
        pieces = [event for event in events if isinstance(event, Piece)]
        num_before = len(seq.output)
        is_first = seq.first_token_at is None
        if pieces:
            self._advance(seq, partial(self._take_pieces, seq, pieces, now), now, outbox)
        prompt = len(seq.request.prompt) if is_first and seq.first_token_at is not None else 0
        self._counters.count_tokens(prompt=prompt, output=len(seq.output) - num_before)
        error = events[-1]
        if isinstance(error, EngineError) and self._active.get(seq.id) is seq:
            if isinstance(error, UpstreamLost):
                self._watch.doubt()
            self._fail(seq, error, outbox)

    def _take_pieces(self, seq: SequenceState, pieces: list[Piece], now: float) -> FinishReason | None:
        """Append the tokens of the pieces, up to the one with which the request ends; return why it ends, or None."""
        for piece in pieces:
            num_known = len(seq.request.emitted)
            if piece.num_prompt_tokens is not None:
                seq.reported_prompt_tokens = max(0, piece.num_prompt_tokens - num_known)
            num_output = num_known + (piece.num_output_tokens or 0)
            if piece.num_output_tokens is not None:
                seq.reported_output_tokens = num_output
            seq.prompt_logprobs = seq.prompt_logprobs or piece.prompt_logprobs
            if piece.num_cached_tokens:
                self._num_cached_tokens += seq.note_found(piece.num_cached_tokens)
            for index, token in enumerate(piece.token_ids):
                reason = seq.add(token, now, piece.logprobs[index : index + 1])
                if reason is not None:
                    return reason
            if piece.num_reasoning_tokens is not None:
                seq.reported_reasoning_tokens = piece.num_reasoning_tokens
            if piece.num_reasoning:
                seq.add_text(piece.text[: piece.num_reasoning], now, num_output, is_answer=False)
            answer = piece.text[piece.num_reasoning :]
            reason = seq.add_text(answer, now, num_output) if answer else None
            if reason is not None or piece.finish is not None:
                part = self._parts.get(seq.id)
                is_over = reason is not None or part is None or part.is_last
                return reason or piece.finish if is_over else self._send(seq, now)
        return None

    def _new_state(self, request: EngineRequest) -> SequenceState:
        self._validate(request)
        _check_capabilities(request, self._upstream.capabilities)
        return SequenceState(request, self._detokenizer(), self._eos, self._clock())

    def _has_capacity(self, num_prompt: int, max_tokens: int, count: int, *, is_ahead: bool) -> bool:
        """Return True if the server would run the requests now: it has none waiting, and KV cache for them.

        Its numbers are those of its last step, which may take seconds. So not many more are sent than it says it runs.
        The KV use that the server reports holds the requests that were sent before. Those sent later, and the growth
        of all, are added, with the expected output lengths of recent outputs.
        """
        seen = self._watch.latest
        now = self._clock()
        if seen is None or now - seen.asked_at > _STALE_S:
            return False
        if seen.load.waiting and (self._active or now - seen.changed_at < _STANDING_S):
            return False
        if self.capabilities.load and len(self._active) + count > 2 * seen.load.running + _BURST:
            return False
        if seen.load.max_running is not None:
            num_unseen = sum(seq.submitted_at >= seen.asked_at for seq in self._active.values())
            if seen.load.running + num_unseen + count > seen.load.max_running:
                return False
        kv_use = seen.load.kv_use or 0.0
        if seen.load.kv_tokens is None:
            return kv_use < _MAX_KV_USE
        needed = 0
        for seq in self._active.values():
            needed += self._lengths.remaining(len(seq.output), seq.request.sampling.max_tokens)
            if seq.submitted_at >= seen.asked_at:
                needed += len(seq.request.prompt)
        each = min(num_prompt + self._lengths.remaining(0, max_tokens), seen.load.kv_tokens)
        return needed + count * each <= seen.load.kv_tokens * (1 - kv_use)

    def _added(self, state: SequenceState) -> None:
        if state.ending is None:  # otherwise the last of its emitted tokens has ended it
            now = self._clock()
            state.start(now)
            state.ending = self._send(state, now)
        self._wake.set()

    def _removed(self, state: SequenceState, *, is_sound: bool) -> None:
        self._network.end(self._name(state.id))
        self._parts.pop(state.id, None)

    def _reset(self) -> None:
        for request_id in self._active:
            self._network.end(self._name(request_id))
        self._parts.clear()

    def _name(self, request_id: RequestId) -> str:
        part = self._parts.get(request_id)
        return name_of(request_id) + (f"-part{part.number}" if part is not None else "")

    def _send(self, state: SequenceState, now: float) -> FinishReason | None:
        """Append the tokens that are forced, and send the rest. Returns why the request ends with them, or None.

        Servers know no bounds of reasoning. So a request with some is sent in parts: the reasoning, then the answer.
        """
        count = state.request.sampling.logprobs
        while state.reasoning is not None and (token := state.reasoning.forced) is not None:
            certain = () if count is None else (SampledLogprobs(0.0, (token,)[:count], (0.0,)[:count]),)
            if (reason := state.add(token, now, certain)) is not None:
                return reason
        part = next_part(self._parts.get(state.id), state)
        if part is not None:
            self._parts[state.id] = part
        request = self._upstream_request(state)
        if part is not None and not part.is_last:
            request = reasoning_part(request, state)
        self._network.send(request, partial(self._arrived, state))
        return None

    def _arrived(self, seq: SequenceState, event: Piece | EngineError) -> None:
        self._inbox.append((seq, event))
        if not self._wake.is_set():  # setting it again would wake the engine's thread for each piece
            self._wake.set()

    def _server_moved(self) -> None:
        """Note that the server works although no piece has come: a long prompt, or a queue before ours."""
        with self._changed:
            self._note_progress()
            self._counters.count_pass()
        call_out("on_room", self.on_room)

    def _server_restarted(self) -> None:
        """Fail the active requests: the server that has them is gone. Their connections may not say so."""
        with self._changed:
            active = [*self._active.values()]
        for seq in active:
            self._arrived(seq, UpstreamLost("the inference server has restarted"))

    def _upstream_request(self, state: SequenceState) -> UpstreamRequest:
        request, num_known = state.request, len(state.output)
        remaining = request.sampling.max_tokens - num_known
        if request.pause_after is not None:
            remaining = min(remaining, request.pause_after - (num_known - len(request.emitted)))
        at_least = (request.sampling.min_tokens or 0) - num_known
        ends = {*(() if request.sampling.ignore_eos else self._eos), *(request.sampling.stop_token_ids or ())}
        return UpstreamRequest(
            id=self._name(request.id),
            model=self._config.model,
            prompt=(*request.prompt, *state.output),
            sampling=replace(
                request.sampling,
                max_tokens=max(1, remaining),
                min_tokens=min(at_least, remaining) if at_least > 0 else None,
            ),
            stop_token_ids=tuple(sorted(ends)),
            priority=request.class_rank,
            cache_salt=request.cache_salt,
            piece_tokens=_BACKGROUND_PIECE if request.class_rank >= BACKGROUND_RANK else 1 + len(self._active) // 64,
            messages=request.messages,
            emitted_text="" if self.capabilities.token_ids else "".join(request.emitted_deltas),
            session=request.session,
            traceparent=request.traceparent,
        )


def name_of(request_id: RequestId) -> str:
    """Return the id under which the server knows a request: job id, epoch, and the choice if there are several."""
    return "-".join(map(str, request_id)) if isinstance(request_id, tuple) else str(request_id)


def _check_capabilities(request: EngineRequest, can: Capabilities) -> None:
    """Raise RequestInvalid for what the server cannot do, and CheckpointMismatch if it cannot continue."""
    sampling = request.sampling
    if sampling.grammar is not None and sampling.grammar.kind not in can.grammars:
        raise RequestInvalid(
            f"the inference server of this model enforces no grammar of the kind {sampling.grammar.kind}"
        )
    if sampling.logprobs is not None and not can.logprobs:
        raise RequestInvalid("the inference server of this model returns no logprobs")
    if sampling.bad_words and not can.bad_words:
        raise RequestInvalid("the inference server of this model has no `bad_words`: leave it out")
    if sampling.scores_prompt and not can.echo:
        raise RequestInvalid("the inference server of this model returns no logprobs of the prompt: leave out `echo`")
    if sampling.seed is not None and sampling.temperature > 0 and not can.seeds:
        raise RequestInvalid("the inference server of this model ignores seeds: leave out `seed`")
    if request.emitted_deltas:
        lost = _lost_state(request, can)
        if lost is not None:
            raise CheckpointMismatch(f"the inference server cannot continue a request with {lost}")


def _lost_state(request: EngineRequest, can: Capabilities) -> str | None:
    """Return the state of an earlier attempt that the server cannot rebuild from its tokens or its text, or None."""
    sampling = request.sampling
    if not can.token_ids and (lost := _lost_text(request, can)) is not None:
        return lost
    if sampling.grammar is not None and not can.continues_grammar:
        return "a grammar"
    if sampling.repetition_penalty != 1.0 and not can.continues_repetition_penalty:
        return "a repetition penalty"
    counts_output = sampling.presence_penalty or sampling.frequency_penalty or sampling.bad_words
    if counts_output and not can.continues_penalties:
        return "presence or frequency penalties, or bad words"
    if sampling.seed is not None and sampling.temperature > 0 and not can.continues_seed:
        return "a seed"
    return None


def _lost_text(request: EngineRequest, can: Capabilities) -> str | None:
    """Return what a server that goes on with the last message of a conversation cannot rebuild, or None."""
    if not can.continues_text:
        return "text instead of tokens"
    text = "".join(request.emitted_deltas)
    if THINK_TAGS.opening in text or HERMES_TAGS[0] in text:
        return "reasoning or tool calls"
    turns: Any = request.messages["messages"]
    return "an answer as its last message" if turns[-1]["role"] == "assistant" else None
