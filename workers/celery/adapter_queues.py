"""The queues of a worker: that of its version, and those of the version's LoRA adapters, which the registry names.

A thread reads the registry every ``POLL_S``. An adapter is served while its files are on this machine and are those
that were registered; others are looked at again every ``AGAIN_S``.
"""

import time
from collections.abc import Callable, Sequence

import structlog

from headrace.store.errors import ModelLoadError
from headrace.store.periodic import Periodic
from headrace.store.registry.models import ModelVersion, queue_name

log = structlog.get_logger(__name__)

POLL_S = 2.0
AGAIN_S = 30.0


class AdapterQueues(Periodic):
    """The queues of the adapters that this worker serves now. ``on_change`` is called on the thread of this object.

    ``find`` returns all adapters of the version. ``check`` raises ModelLoadError for one that cannot be used here.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[ModelVersion]],
        check: Callable[[ModelVersion], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._check = check
        self._clock = clock
        self._names: tuple[str, ...] = ()
        self._refused_until: dict[str, float] = {}
        self._on_change: Callable[[], None] = _nothing
        super().__init__("adapters", self._look, POLL_S)

    def names(self) -> tuple[str, ...]:
        """Return the queues."""
        return self._names

    def attach(self, on_change: Callable[[], None]) -> None:
        """Set the function that is called after each change."""
        self._on_change = on_change

    def start(self) -> None:
        """Look once, and go on in the thread."""
        self.run_once()
        super().start()

    def _look(self) -> None:
        names = tuple(queue_name(one.model, one.version) for one in self._find() if self._is_usable(one))
        if names != self._names:
            self._names = names
            log.info("adapters_served", queues=names)
            self._on_change()

    def _is_usable(self, version: ModelVersion) -> bool:
        name = queue_name(version.model, version.version)
        if name in self._names:
            return True
        if self._clock() < self._refused_until.get(name, 0.0):
            return False
        try:
            self._check(version)
        except ModelLoadError as error:
            self._refused_until[name] = self._clock() + AGAIN_S
            log.warning("adapter_refused", adapter=name, reason=error.message)
            return False
        return True


def _nothing() -> None:
    """Nothing is attached."""
