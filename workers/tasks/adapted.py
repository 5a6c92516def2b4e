"""The LoRA adapters of a worker's version: loaded when a job needs one, and kept while there is room.

    job ──▶ using ──▶ in memory?  no ──▶ room, or one that no job uses? ──▶ load ──▶ request with the adapter
                                              └─ none: wait in turn, and give the job back after a while

The batch goes on meanwhile: an adapter is loaded on the thread of its job.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import structlog

from headrace.models.engine.protocol import Engine
from headrace.models.engine.requests import Adapter, CompletionOutput, EngineError, EngineRequest, EngineStopped
from headrace.store.errors import ModelLoadError
from headrace.store.registry.models import ModelVersion, get_version, queue_name
from headrace.workers.runs.attempt_spans import AttemptSpans
from headrace.workers.runs.engine_admission import EngineAdmission
from headrace.workers.runs.in_flight import Attempt, InFlightAttempts
from headrace.workers.runs.job_runner import EngineClient
from headrace.workers.tasks.task_model import WorkContext

log = structlog.get_logger(__name__)

WAIT_S = 5.0
"""How long a job waits for room, before it goes back to the queue: meanwhile it may be cancelled, or become late."""

LoadAdapter: TypeAlias = Callable[[str, int], Adapter]
"""Loads the adapter that is this version of a model. Raises ModelLoadError."""


class AdaptersBusy(EngineStopped):
    """All adapters in memory were in use for too long. The job goes back to the queue and is not charged."""

    code = "handed_back"


class AdapterNotLoaded(EngineError):
    """The adapter's files are missing here, or are not those that were registered. Another worker may have them."""

    code = ModelLoadError.default_code
    retryable = True


@dataclass(slots=True)
class _Place:
    """An adapter in memory, or one that is being loaded, and how many jobs use it."""

    num_users: int = 1
    adapter: Adapter | None = None
    loaded: threading.Event = field(default_factory=threading.Event)


class AdapterCache:
    """At most ``most`` adapters in memory. The one that was not used for the longest time makes room for another.

    Jobs that wait for room have their turns in order, and others do not go before them, so each gets its turn.
    """

    def __init__(self, load: LoadAdapter, most: int, *, wait_s: float = WAIT_S) -> None:
        self._load = load
        self._most = most
        self._wait_s = wait_s
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self.waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def using(self, model: str, version: int) -> Iterator[Adapter]:
        """Keep the adapter of this version in memory during the block. Raises AdaptersBusy and AdapterNotLoaded."""
        name = queue_name(model, version)
        place, is_new = self._enter(name)
        try:
            if is_new:
                self._fill(name, place, lambda: self._load(model, version))
            place.loaded.wait()
            if place.adapter is None:
                raise AdapterNotLoaded(f"the adapter {name} could not be loaded")
            yield place.adapter
        finally:
            with self._changed:
                place.num_users -= 1
                self._changed.notify_all()

    def _enter(self, name: str) -> tuple[_Place, bool]:
        """Return the place of an adapter with one more user, and whether it is new and must be filled."""
        turn = object()
        with self._changed:
            self.waiting.append(turn)
            try:
                if not self._changed.wait_for(lambda: self.waiting[0] is turn and self._has_room(name), self._wait_s):
                    raise AdaptersBusy(f"{self._most} adapters were in use, and {name} is not one of them")
                if (place := self._places.get(name)) is not None:
                    place.num_users += 1
                    self._places.move_to_end(name)
                    return place, False
                if len(self._places) >= self._most:
                    self._evict()
                self._places[name] = _Place()
                return self._places[name], True
            finally:
                self.waiting.remove(turn)
                self._changed.notify_all()

    def _has_room(self, name: str) -> bool:
        return name in self._places or len(self._places) < self._most or self._unused() is not None

    def _unused(self) -> str | None:
        """Return the adapter without users that was not used for the longest time."""
        return next((name for name, place in self._places.items() if not place.num_users), None)

    def _evict(self) -> None:
        if (name := self._unused()) is not None:
            del self._places[name]
            log.info("adapter_evicted", adapter=name)

    def _fill(self, name: str, place: _Place, load: Callable[[], Adapter]) -> None:
        try:
            place.adapter = load()
            log.info("adapter_loaded", adapter=name)
        except ModelLoadError as error:
            log.error("adapter_not_loaded", adapter=name, error=error.message)
        finally:
            with self._changed:
                if place.adapter is None:
                    del self._places[name]
                place.loaded.set()


class AdaptingClient(EngineClient[EngineRequest, CompletionOutput]):
    """Runs the requests of an attempt with the adapter of its version; those of the base's model without one."""

    def __init__(
        self,
        engine: Engine[EngineRequest, CompletionOutput],
        admission: EngineAdmission,
        in_flight: InFlightAttempts,
        spans: AttemptSpans,
        *,
        adapters: AdapterCache,
        base_model: str,
    ) -> None:
        super().__init__(engine, admission, in_flight, spans)
        self._adapters = adapters
        self._base_model = base_model

    def run(self, attempt: Attempt, request: EngineRequest, *, num_prompt: int, max_tokens: int) -> CompletionOutput:
        """As ``EngineClient.run``. Raises AdaptersBusy and AdapterNotLoaded, too."""
        with self._adapter(attempt) as adapter:
            adapted = replace(request, adapter=adapter)
            return super().run(attempt, adapted, num_prompt=num_prompt, max_tokens=max_tokens)

    def run_group(
        self,
        attempt: Attempt,
        requests: Sequence[EngineRequest],
        *,
        num_prompt: int,
        max_tokens: int,
        is_last: Callable[[CompletionOutput], bool],
        on_result: Callable[[int, CompletionOutput], object],
    ) -> dict[int, CompletionOutput]:
        """As ``EngineClient.run_group``. Raises AdaptersBusy and AdapterNotLoaded, too."""
        with self._adapter(attempt) as adapter:
            return super().run_group(
                attempt,
                [replace(request, adapter=adapter) for request in requests],
                num_prompt=num_prompt,
                max_tokens=max_tokens,
                is_last=is_last,
                on_result=on_result,
            )

    @contextmanager
    def _adapter(self, attempt: Attempt) -> Iterator[Adapter | None]:
        model, version = attempt.claim.model, attempt.claim.model_version
        # A version of the base's model has the base's weights, and may differ in its default template.
        if model == self._base_model:
            yield None
            return
        with self._adapters.using(model, version) as adapter:
            yield adapter


def adapting_client(
    engine: Engine[EngineRequest, CompletionOutput],
    context: WorkContext,
    base: ModelVersion,
    load: Callable[[ModelVersion], Adapter],
    most: int,
) -> AdaptingClient:
    """Return the client of an engine whose model is ``base``. At most ``most`` adapters are in memory."""

    def load_version(model: str, version: int) -> Adapter:
        return load(get_version(context.db, model, version))

    return AdaptingClient(
        engine,
        context.admission,
        context.in_flight,
        context.spans,
        adapters=AdapterCache(load_version, most),
        base_model=base.model,
    )
