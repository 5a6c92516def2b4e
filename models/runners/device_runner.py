"""The Runner for a GPU: it gives the device the next pass before the host has read the tokens of the last one.

    device   | pass n           | pass n + 1       | pass n + 2       |
    host     … give n + 1, read n, the engine's step, give n + 2, read n + 1, …

The engine knows nothing of it. Each time it asks for a step, the runner also starts the step after it, with the sampled
tokens as they are on the device, and guesses that the same requests go on. If the engine then plans something else, the
results of requests that go on are used all the same, because a row depends on its own tokens only; other rows get a
pass of their own, and results of requests that have ended are dropped.

A step with penalties, grammars, token rules, logprobs or drafts needs the host for each token, so it runs as on a CPU.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from headrace.models.engine.requests import RequestId
from headrace.models.engine.runner import Row, Sampled, StepPlan
from headrace.models.families.model import ModelWithCache
from headrace.models.runners.decode_graphs import DecodeGraphs
from headrace.models.runners.torch_runner import TorchRunner, translate_torch_errors
from headrace.models.sampling.device_sampler import NUM_CANDIDATES, SamplingInput, choose, is_simple, sampling_input
from headrace.models.sampling.sampler import draw
from headrace.models.tensors.transfer import HostCopy
from headrace.prompts.grammar import Grammars


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass that the device has been given. ``copy`` holds, for each sampled row, the token, if it is sound and if the
    candidates were enough; then, for each token of the pass, if its numbers are finite.
    """

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    sampled: Mapping[RequestId, int]  # the index in tokens, logits and inputs
    inputs: Sequence[SamplingInput]
    tokens: torch.Tensor
    logits: torch.Tensor
    copy: HostCopy


class DeviceRunner(TorchRunner):
    """Computes steps for one model on one GPU. ``default_settings`` are those of the worker for this card."""

    def __init__(
        self,
        loaded: ModelWithCache,
        *,
        context_window: int,
        eos_token_ids: frozenset[int],
        device: torch.device,
        grammars: Grammars | None = None,
        graphs: DecodeGraphs | None = None,
        default_settings: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            loaded, context_window=context_window, eos_token_ids=eos_token_ids, device=device, grammars=grammars
        )
        self.spare_tokens = 0  # a pass with drafts cannot begin before the host has the tokens
        self.lookahead_tokens = 1
        self.default_settings = default_settings or {}
        self.num_candidates = NUM_CANDIDATES
        self._graphs = graphs
        self._ahead: _Pass | None = None
        self._guesses: dict[RequestId, Row] = {}  # the rows of the pass ahead that may be used
        self._redone: set[RequestId] = set()  # requests whose token was chosen again after the pass ahead had begun

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> list[Sampled]:
        """As ``TorchRunner.run``."""
        with translate_torch_errors():
            if plan.rows and all(not row.sample or _is_simple(row) for row in plan.rows):
                return self._run(plan)
            if (ahead := self._take_ahead()) is not None:
                self._read(ahead, (), self._redone_of(plan))
        return super().run(plan)

    def forget(self, request_id: RequestId) -> None:
        """Drop the state of a request that has ended."""
        super().forget(request_id)
        self._guesses.pop(request_id, None)

    def _run(self, plan: StepPlan) -> list[Sampled]:
        used = {row.request.id for row in plan.rows if self._is_guessed(row)}
        redone, ahead = self._redone_of(plan), self._take_ahead()
        rest = tuple(row for row in plan.rows if row.request.id not in used)
        found: dict[RequestId, Sampled] = {}
        passes, unread = ([ahead] if ahead is not None and used else []), []
        if ahead is not None and (rest or len(used) < len(ahead.rows)):
            # This step may use blocks of requests that have ended. NaN in them must be cleared before.
            found |= self._read(ahead, used, redone)
        else:
            unread += passes
        if rest:
            passes.append(self._launch(StepPlan(rest)))
            unread.append(passes[-1])
        self._look_ahead(plan, passes)
        for each in unread:
            found |= self._read(each, {row.request.id for row in each.rows}, ())
        broken = self._broken
        return [
            Sampled(row.request.id, None, finite=False) if row.request.id in broken else found[row.request.id]
            for row in plan.rows
            if row.sample or row.request.id in broken
        ]

    def _is_guessed(self, row: Row) -> bool:
        """Return True if the pass ahead computes this row."""
        guess, at = self._guesses.get(row.request.id), row.start // self.block_tokens
        if guess is None or (guess.start, len(row.tokens), row.sample) != (row.start, 1, True):
            return False
        return guess.blocks[at] == row.blocks[at]

    def _take_ahead(self) -> _Pass | None:
        ahead, self._ahead = self._ahead, None
        self._guesses, self._redone = {}, set()
        return ahead

    def _redone_of(self, plan: StepPlan) -> frozenset[RequestId]:
        return frozenset(row.request.id for row in plan.rows if row.request.id in self._redone)

    def _launch(self, plan: StepPlan, ahead: "tuple[Mapping[RequestId, int], torch.Tensor] | None" = None) -> _Pass:
        """Give the device a pass. ``ahead``: the tokens of its rows are these, by index, on the device."""
        batch = self.batch_builder.build(plan)
        if ahead is not None:
            places, tokens = ahead
            batch = replace(
                batch, tokens=tokens[self.batch_builder.send([places[row.request.id] for row in batch.rows])]
            )
        hidden = None if self._graphs is None else self._graphs.forward(batch)
        if hidden is None:
            hidden = self._model.forward(batch, self.cache)
        is_finite = hidden.sum(dim=-1, dtype=torch.float).isfinite()
        wanted = [(row, end) for row, end in zip(batch.rows, batch.ends, strict=True) if row.sample]
        inputs = [sampling_input(row.request.sampling, len(row.output)) for row, _ in wanted]
        if len(wanted) < len(hidden):
            hidden = hidden[self.batch_builder.send([end for _, end in wanted])]
        logits = self._model.logits(hidden) if wanted else hidden
        tokens, flags = torch.empty(0, dtype=torch.long, device=hidden.device), [is_finite]
        if wanted:
            choice = choose(logits, inputs, self.num_candidates)
            tokens, flags = choice.tokens, [choice.is_sound, choice.is_enough, is_finite]
        return _Pass(
            rows=batch.rows,
            ends=batch.ends,
            sampled={row.request.id: index for index, (row, _) in enumerate(wanted)},
            inputs=inputs,
            tokens=tokens,
            logits=logits,
            copy=HostCopy(torch.cat((tokens, *flags))),
        )

    def _look_ahead(self, plan: StepPlan, passes: Sequence[_Pass]) -> None:
        """Start the step after ``plan``, if every request that goes on has its token and a block for it."""
        going = [row for row in plan.rows if len(row.output) + 1 < row.request.sampling.max_tokens]
        guesses = tuple(map(_guess, going))
        if not guesses or not all(row.sample for row in plan.rows):
            return
        if any(guess.start >= len(guess.blocks) * self.block_tokens for guess in guesses):
            return
        places: dict[RequestId, int] = {}
        offset = 0
        for each in passes:
            places |= {request_id: offset + index for request_id, index in each.sampled.items()}
            offset += len(each.inputs)
        try:
            self._ahead = self._launch(StepPlan(guesses), (places, torch.cat([each.tokens for each in passes])))
        except torch.OutOfMemoryError:
            return
        self._guesses = {guess.request.id: guess for guess in guesses}

    def _read(self, one: _Pass, used: Collection[RequestId], redone: Collection[RequestId]) -> dict[RequestId, Sampled]:
        """Wait for a pass, and return the results of the requests in ``used``.

        Clears what is not finite, except for requests in ``redone``, which write to the same place again.
        """
        values, count = one.copy.read(), len(one.inputs)
        tokens, is_sound, is_enough = (values[n * count : (n + 1) * count] for n in range(3))
        found = {}
        for request_id, index in one.sampled.items():
            if request_id in used and is_sound[index] and not is_enough[index]:
                tokens[index] = self._choose_again(one, index, request_id)
            found[request_id] = Sampled(request_id, tokens[index], finite=bool(is_sound[index]))
        for row in self._broken_rows(one, values[3 * count :], found):
            if row.request.id in used:
                self._broken.add(row.request.id)
            if row.request.id not in redone:
                self._clear(row)
        return {request_id: sampled for request_id, sampled in found.items() if request_id in used}

    def _choose_again(self, one: _Pass, index: int, request_id: RequestId) -> int:
        """Choose from the whole vocabulary, because the candidates were too few."""
        given = one.inputs[index]
        token = int(draw(one.logits[index : index + 1], [given.params], [given.uniform])[0])
        if self._ahead is None:
            one.tokens[index] = token
        elif self._guesses.pop(request_id, None) is not None:
            self._redone.add(request_id)
        return token


def _is_simple(row: Row) -> bool:
    return is_simple(row.request.sampling) and not row.drafts


def _guess(row: Row) -> Row:
    """Return the row of the step after ``row``. Its token is on the device; of its output only the length counts."""
    return replace(
        row,
        tokens=(0,),
        start=row.start + len(row.tokens),
        blocks=tuple(row.blocks),
        output=range(len(row.output) + 1),
        sample=True,
    )
