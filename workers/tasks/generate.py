"""The work of the task ``generate``: a job's payload in, the engine's text out, as the outcome to write.

    payload, prompt, checkpoint ──▶ engine ──▶ outcome
                                      └─ handed back or engine failure: a Retry with the output so far

Claims, leases and writing are ``workers.runs.job_runner``'s.

An attempt that starts anew has the seeds of the first one, so it generates the same text.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from headrace.models.engine.llm_engine import EngineConfig, LLMEngine
from headrace.models.engine.protocol import AnyEngine, Engine
from headrace.models.engine.requests import (
    Adapter,
    CheckpointMismatch,
    CompletionOutput,
    EngineError,
    EngineRequest,
    FinishReason,
    Grammar,
    SamplingParams,
)
from headrace.models.engine.runner import Runner
from headrace.models.loading.load import adapter_loader, check_adapter, load_runner, number_format, with_faults
from headrace.prompts.bad_words import banned_sequences
from headrace.prompts.chat_server import ChatFields, session_of
from headrace.prompts.detokenizer import Detokenizer
from headrace.prompts.tasks.generate import build_prompt, fit
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.prompts.tokenizer import ApproximateTokenizer, Tokenizer, tokenizer_for
from headrace.store.jobs.claims import Finish
from headrace.store.metrics.worker_metrics import WorkerMetrics
from headrace.store.payloads.job_payload import read_payload
from headrace.store.payloads.sampling_params import Sampling
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion
from headrace.store.registry.verification_report import GoldenAnswer
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.tasks.generate import GeneratePayload
from headrace.workers.runs import choice_outcome, outcome
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.checkpoint_recovery import CheckpointRecovery
from headrace.workers.runs.choice_stream import ChoiceStream
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, ChoiceId, InFlightAttempts
from headrace.workers.runs.job_runner import EngineClient
from headrace.workers.runs.logprobs import echoed, emitted
from headrace.workers.runs.outcome import Retry
from headrace.workers.runs.output_guard import JobGuards, OutputGuard, open_guards
from headrace.workers.runs.stream_publisher import FrameQueue
from headrace.workers.tasks.adapted import adapting_client
from headrace.workers.tasks.reasoning_tokens import reasoning_tokens
from headrace.workers.tasks.self_test import PROMPTS, SelfTest, generate_test
from headrace.workers.tasks.task_model import EngineSetup, TaskModel, WorkContext, quiet_setup

_SEEDS = 2**63


def seeded(sampling: Sampling, job_id: str, prompt_number: int = 0) -> Sampling:
    """Return the sampling parameters with a seed; without one in the request it is derived from the job's id.

    Then each of several prompts has another one. So an attempt that starts anew generates the same text as the lost
    one, and readers keep theirs.
    """
    if sampling.seed is not None:
        return sampling
    name = f"{job_id}.{prompt_number}" if prompt_number else job_id
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return sampling.model_copy(update={"seed": int.from_bytes(digest, "big") >> 1})


def sample_seed(seed: int | None, sample: int) -> int | None:
    """Return the seed of a prompt's answer with this number, from 0; the first one has the request's own."""
    return None if seed is None else (seed + sample) % _SEEDS


log = structlog.get_logger(__name__)


class Generating:
    """Generates text for jobs of one model version. ``compute`` is called from many threads at once.

    ``kind`` is the engine's; ``chat_fields`` is for a server of chat completions. Only Headrace's own engine gets a
    seed for each job: a server cannot go on with one.
    """

    def __init__(
        self,
        *,
        in_flight: InFlightAttempts,
        engine: Engine[EngineRequest, CompletionOutput],
        admission: EngineAdmission,
        frames: FrameQueue,
        recovery: CheckpointRecovery,
        tokenizer: Tokenizer,
        guards: JobGuards,
        context_window: int,
        metrics: WorkerMetrics,
        spans: AttemptSpans,
        kind: EngineKind = EngineKind.NATIVE,
        chat_fields: ChatFields | None = None,
        client: EngineClient[EngineRequest, CompletionOutput] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kind = kind
        self._chat_fields = chat_fields
        self._engine = client or EngineClient(engine, admission, in_flight, spans)
        self._frames = frames
        self._recovery = recovery
        self._tokenizer = tokenizer
        self._guards = guards
        self._context_window = context_window
        self._metrics = metrics
        self._spans = spans
        self._clock = clock

    def compute(self, attempt: Attempt) -> Finish | Retry:
        """Generate the job's text. Raises InvalidRequest for a payload that cannot be read or does not fit."""
        payload = read_payload(GeneratePayload, attempt.claim.payload)
        pinned = payload.policy
        rules = None if pinned is None else self._guards.output(attempt.claim.tenant_id, pinned, payload)
        is_guarded = rules is not None and rules.holds_back
        generate = self._generate if payload.num_choices == 1 else self._generate_choices
        verdict = generate(attempt, payload, rules, is_guarded=is_guarded)
        # The model's own text of a guarded attempt must not be stored, so the next attempt starts anew.
        return replace(verdict, checkpoint=None) if is_guarded and isinstance(verdict, Retry) else verdict

    def _generate(
        self, attempt: Attempt, payload: GeneratePayload, rules: OutputGuard | None, *, is_guarded: bool
    ) -> Finish | Retry:
        (request,), start = self._begin(attempt, [self._request(attempt, payload)], is_guarded=is_guarded)
        self._put_filter(attempt, rules if is_guarded else None)
        waited_s = self._clock() - attempt.claimed_at
        try:
            completion = self._engine.run(
                attempt, request, num_prompt=len(request.prompt), max_tokens=request.sampling.max_tokens
            )
        except EngineError as error:
            return outcome.stopped(attempt.claim, error, waited_s, start)
        self._observe(attempt, completion, waited_s)
        prompt = echoed(self._tokenizer, request, completion) if request.sampling.echo else None
        return outcome.completed(
            attempt.claim, payload, completion, waited_s, start, self._tokenizer, rules, prompt=prompt
        )

    def _observe(self, attempt: Attempt, completion: CompletionOutput, waited_s: float) -> None:
        """Note the attempt's times. A job's wait is counted once."""
        times = self._metrics.times[attempt.claim.class_rank]
        queued_s = attempt.claim.queued_s + waited_s + completion.queued_s
        if attempt.epoch == 1:
            times.queue.observe(queued_s)
        if completion.first_token_s is not None:
            prefill_s = completion.first_token_s - completion.queued_s
            times.prefill.observe(prefill_s)
            times.decode.observe(completion.total_s - completion.first_token_s)

    def _generate_choices(
        self, attempt: Attempt, payload: GeneratePayload, rules: OutputGuard | None, *, is_guarded: bool
    ) -> Finish | Retry:
        requests, start = self._begin(attempt, self._choice_requests(attempt, payload), is_guarded=is_guarded)
        stream = ChoiceStream(start)
        self._frames.put_choices(attempt.id, stream)
        self._put_filter(attempt, rules if is_guarded else None)
        submitted_at = self._clock()
        try:
            completions = self._run_choices(attempt, requests, start)
        except EngineError as error:
            written = stream.checkpoint()
            return outcome.refused(attempt.claim, error, written if written.deltas else None)
        waited_s = submitted_at - attempt.claimed_at
        self._observe(attempt, completions[0], waited_s)
        prompts = [*map(partial(echoed, self._tokenizer), requests, completions)]
        return choice_outcome.completed(
            attempt.claim,
            payload,
            completions,
            waited_s,
            start,
            stream.checkpoint(),
            self._tokenizer,
            rules,
            prompts=prompts,
        )

    def _run_choices(
        self, attempt: Attempt, requests: Sequence[EngineRequest], start: Checkpoint
    ) -> list[CompletionOutput]:
        """Return the result of each request; those that an earlier attempt has ended are not run again."""
        ends = start.ends
        left = [number for number in range(len(requests)) if number not in ends]

        def note_end(position: int, completion: CompletionOutput) -> None:
            if (end := choice_outcome.end_of(completion)) is not None:
                self._frames.put_choice_end(ChoiceId(*attempt.id, left[position]), end)

        results = self._engine.run_group(
            attempt,
            [requests[number] for number in left],
            num_prompt=sum(len(prompt) for prompt in {request.prompt for request in requests}),
            max_tokens=sum(request.sampling.max_tokens for request in requests),
            is_last=lambda completion: choice_outcome.end_of(completion) is None,
            on_result=note_end,
        )
        found = {left[position]: completion for position, completion in results.items()}
        reason = choice_outcome.unfinished([*found.values()]) or FinishReason.CANCELLED
        for number, request in enumerate(requests):
            if number not in found:
                known, end = start.of_choice(number), ends.get(number)
                found[number] = (
                    choice_outcome.not_begun(request, known, reason)
                    if end is None
                    else choice_outcome.ended_before(request, known, end)
                )
        return [found[number] for number in range(len(requests))]

    def _put_filter(self, attempt: Attempt, rules: OutputGuard | None) -> None:
        """Filter the attempt's stream by the rules, if there are any."""
        if rules is not None:
            self._frames.put_filter(attempt.id, rules.stream_filter(lambda: self._engine.cancel(attempt)))

    def _begin(
        self, attempt: Attempt, requests: Sequence[EngineRequest], *, is_guarded: bool
    ) -> tuple[Sequence[EngineRequest], Checkpoint]:
        """Return the requests, as they continue, and their checkpoint.

        After the first attempt a start frame informs readers of it.
        """
        if attempt.epoch == 1:
            return requests, Checkpoint(lineage=((1, 0),))
        # An attempt that goes on after emitted tokens has not seen the prompt's logits.
        is_fresh = is_guarded or requests[0].sampling.scores_prompt
        known = (
            Checkpoint()
            if is_fresh
            else self._recovery.checkpoint(attempt.claim, attempt.claim.queued_s + self._clock() - attempt.claimed_at)
        )
        start = known.continued_by(attempt.epoch)
        try:
            requests = [self._continued(request, number, start) for number, request in enumerate(requests)]
        except CheckpointMismatch as error:
            log.warning("attempt_restarts", reason=str(error))
            start = Checkpoint().continued_by(attempt.epoch)
        self._frames.put_start(attempt.id, start)
        return requests, start

    def _continued(self, request: EngineRequest, number: int, start: Checkpoint) -> EngineRequest:
        """Return the request as it continues. Raises CheckpointMismatch if it cannot."""
        own = start.of_choice(number)
        if not own.deltas or number in start.ends:
            return request
        continued = replace(
            request,
            emitted=own.tokens,
            emitted_deltas=own.deltas,
            emitted_logprobs=emitted(own.logprobs),
        )
        self._engine.check(continued)
        return continued

    def _choice_requests(self, attempt: Attempt, payload: GeneratePayload) -> list[EngineRequest]:
        """Return one request for each choice: those of the first prompt, then those of the next one."""
        requests: list[EngineRequest] = []
        for number, source in enumerate(payload.input.each_prompt):
            first = self._request(attempt, payload.model_copy(update={"input": source}), number)
            requests += [
                replace(
                    first,
                    id=ChoiceId(*attempt.id, len(requests) + sample),
                    group=attempt.id,
                    sampling=replace(first.sampling, seed=sample_seed(first.sampling.seed, sample)),
                )
                for sample in range(payload.n or 1)
            ]
        return requests

    def _request(self, attempt: Attempt, payload: GeneratePayload, prompt_number: int = 0) -> EngineRequest:
        is_chat = self._chat_fields is not None
        sampling = payload.sampling
        if self._kind is EngineKind.NATIVE:
            sampling = seeded(sampling, attempt.job_id, prompt_number)
        prompt = build_prompt(self._tokenizer, payload.input)
        if isinstance(self._tokenizer, ApproximateTokenizer):
            # Only the server knows if the prompt fits.
            prompt = prompt[: max(1, self._context_window - (sampling.max_tokens or 0))]
        max_tokens = fit(self._context_window, len(prompt), sampling.max_tokens)
        is_on_probation = outcome.is_on_probation(attempt.claim) and not is_chat  # nothing continues after it
        return EngineRequest(
            attempt.id,
            tuple(prompt),
            sampling_params(sampling, max_tokens),
            attempt.deadline,
            pause_after=outcome.PROBATION_TOKENS if is_on_probation else None,
            cache_salt=attempt.claim.tenant_id,
            class_rank=attempt.claim.class_rank,
            banned=banned_sequences(self._tokenizer, words) if (words := sampling.bad_words) and not is_chat else (),
            messages={} if self._chat_fields is None else self._chat_fields(attempt.claim.tenant_id, payload.input),
            reasoning=reasoning_tokens(marks, self._tokenizer)
            if (marks := payload.reasoning) and not is_chat
            else None,
            traceparent=self._spans.traceparent(attempt),
            session="" if self._kind is EngineKind.NATIVE else session_of(attempt.claim.tenant_id, payload.input),
        )


@dataclass(frozen=True, slots=True)
class GenerateModel(TaskModel):
    """A model version that generates text, with its runner and tokenizer."""

    version: ModelVersion
    runner: Runner
    tokenizer: Tokenizer
    load_adapter: Callable[[ModelVersion], Adapter] | None = None
    max_adapters: int = 1

    def check_adapter(self, version: ModelVersion) -> None:
        """As ``TaskModel.check_adapter``."""
        check_adapter(version)

    @property
    def default_settings(self) -> Mapping[str, int]:
        """What suits the device of the runner."""
        return self.runner.default_settings

    def new_engine(self, setup: EngineSetup) -> LLMEngine:
        """Return an engine for language models."""
        settings = setup.settings
        return LLMEngine(
            self.runner,
            lambda: Detokenizer(self.tokenizer),
            EngineConfig(
                setup.num_slots,
                settings.step_tokens,
                speculation=settings.speculation == "auto",
                stretch=settings.stretch,
                deltas_per_s=settings.stream_deltas_per_s,
            ),
            on_deltas=setup.on_deltas,
            on_room=setup.on_room,
            on_failed=setup.on_failed,
        )

    def self_test(self, settings: Settings, golden: Sequence[GoldenAnswer]) -> SelfTest:
        """Continue a few prompts greedily."""
        engine = self.new_engine(quiet_setup(settings, max(len(golden), len(PROMPTS))))
        dtype = number_format(self.version, settings)
        return generate_test(engine, self.tokenizer, golden, context_window=self.runner.context_window, dtype=dtype)

    def scorer(self) -> tuple[Runner, Tokenizer]:
        """As ``TaskModel.scorer``."""
        return self.runner, self.tokenizer

    def new_work(self, engine: AnyEngine, context: WorkContext) -> Generating:
        """Return the work for the jobs of this model."""
        client = None
        if self.load_adapter is not None:
            client = adapting_client(engine, context, self.version, self.load_adapter, self.max_adapters)
        window = min(self.version.context_window, self.runner.context_window)
        return generating(self.version, self.tokenizer, engine, context, context_window=window, client=client)


def generating(
    version: ModelVersion,
    tokenizer: Tokenizer,
    engine: AnyEngine,
    context: WorkContext,
    *,
    context_window: int,
    client: EngineClient[EngineRequest, CompletionOutput] | None = None,
    chat_fields: ChatFields | None = None,
) -> Generating:
    """Return the work for the jobs of a version that generates text, on whichever engine."""
    return Generating(
        in_flight=context.in_flight,
        engine=engine,
        admission=context.admission,
        frames=context.frames,
        recovery=CheckpointRecovery(context.fenced_logs),
        tokenizer=tokenizer,
        guards=open_guards(context.db),
        context_window=context_window,
        metrics=context.metrics,
        spans=context.spans,
        kind=version.engine.kind,
        chat_fields=chat_fields,
        client=client,
    )


def load_generate_model(version: ModelVersion, settings: Settings, read_file: ReadFile) -> GenerateModel:
    """Load a model that generates text."""
    tokenizer = tokenizer_for(version, read_file)
    runner = load_runner(version, settings)
    load_adapter = adapter_loader(runner, version)
    runner = with_faults(runner, settings, tokenizer.decode)
    return GenerateModel(version, runner, tokenizer, load_adapter, settings.max_adapters)


def sampling_params(sampling: Sampling, max_tokens: int) -> SamplingParams:
    """Return the sampling parameters in the engine's form."""
    plain = sampling.model_dump(exclude={"max_tokens", "stop", "grammar"}, exclude_none=True)
    grammar = None if sampling.grammar is None else Grammar(sampling.grammar.kind.value, sampling.grammar.text)
    return SamplingParams(**plain, stop=sampling.stop, max_tokens=max_tokens, grammar=grammar)
