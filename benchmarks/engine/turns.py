"""Rounds in which all contestants take turns, so that what the machine does meanwhile hits all alike.

Every contestant's process is started before the first round and waits, idle, while the others compute. One that does
not come up, or fails in a run, is out with the reason; the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.engine.contestants import Contestant
from benchmarks.engine.measured import Measured, WrongAnswer, measured
from benchmarks.engine.peers.wire import Answer, Request
from benchmarks.engine.process import DoesNotRun, PeerProcess
from benchmarks.engine.workloads import Encode, Shape, arriving, requests_of
from benchmarks.venvs import CannotInstall

Say = Callable[[str], None]

OPEN_LOOP = "open loop"
_WARM_UP = Shape(requests=8, prompt=(16, 300), output=(4, 24))


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round. ``slots`` are those that it really had; ``load`` are the requests a second
    of an open loop, None if all came at t = 0.
    """

    contestant: str
    workload: str
    asked_slots: int
    slots: int
    number: int
    load: float | None
    figures: Measured


class Field:
    """The contestants that run, by name, and why the others do not."""

    def __init__(self, model: Path, encode: Encode, seed: int, say: Say) -> None:
        self.refusals: dict[str, str] = {}
        self.ready: dict[str, dict[str, object]] = {}
        self.turns: list[Turn] = []
        self._model, self._encode, self._seed, self._say = model, encode, seed, say
        self._running: dict[str, PeerProcess] = {}
        self._num_runs = 0

    @contextmanager
    def running(self, contestants: Sequence[Contestant]) -> Iterator[None]:
        """Start them all; end them when the block ends."""
        with ExitStack() as cleanup:
            for each in contestants:
                self._say(f"starting {each.name}: {each.what}, {each.dtype}")
                try:
                    process = cleanup.enter_context(PeerProcess(each.name, each.argv(self._model, self._say)))
                except (CannotInstall, DoesNotRun) as error:
                    self._refuse(each, error)
                    continue
                self._running[each.name] = process
                self.ready[each.name] = process.ready
            try:
                yield
            finally:
                self._running.clear()

    def rounds(self, contestants: Sequence[Contestant], name: str, shape: Shape, slots: int, count: int) -> None:
        """Let all compute the workload ``count`` times, in turn."""
        for number in range(count):
            requests = self.fresh(shape)
            for each in contestants:
                self._turn(each, name, slots, number, None, requests)

    def rising_load(
        self, contestants: Sequence[Contestant], shape: Shape, slots: int, loads: Sequence[float], seconds: float
    ) -> None:
        """Let all meet the same Poisson arrivals, for about ``seconds`` at each load."""
        for number, load in enumerate(loads):
            requests = self.fresh(replace(shape, requests=max(1, round(load * seconds))))
            for each in contestants:
                self._turn(each, OPEN_LOOP, slots, number, load, arriving(requests, load, self._seed))

    def _turn(
        self, contestant: Contestant, name: str, slots: int, number: int, load: float | None, all_: Sequence[Request]
    ) -> None:
        asked, slots = slots, contestant.slots or slots
        requests = spread(all_, contestant.most)
        if self.ask(contestant, slots, self.fresh(_WARM_UP)) is None:
            return
        if (answer := self.ask(contestant, slots, requests)) is None:
            return
        try:
            figures = measured(requests, answer)
        except WrongAnswer as error:
            self._refuse(contestant, error)
            return
        self.turns.append(Turn(contestant.name, name, asked, slots, number, load, figures))
        at = "" if load is None else f" at {load:g} requests/s"
        self._say(
            f"  {name}{at}, {contestant.name}, {slots} slots: {figures.tokens_per_s:.0f} tokens/s, "
            f"TTFT {figures.ttft_mean_s:.2f} s, {figures.peak_mb:.0f} MB"
        )

    def ask(self, contestant: Contestant, slots: int, requests: Sequence[Request]) -> Answer | None:
        """Run requests of the caller's own; None if the contestant is out."""
        if (process := self._running.get(contestant.name)) is None or contestant.name in self.refusals:
            return None
        try:
            return process.ask(slots, requests)
        except DoesNotRun as error:
            self._refuse(contestant, error)
            return None

    def fresh(self, shape: Shape) -> tuple[Request, ...]:
        """Return a workload whose words no run has seen, so that nobody finds them cached."""
        self._num_runs += 1
        return requests_of(shape, self._encode, self._seed, self._num_runs)

    def _refuse(self, contestant: Contestant, error: Exception) -> None:
        self._say(f"  {contestant.name} is absent: {error}")
        self.refusals[contestant.name] = str(error)


def spread(requests: Sequence[Request], most: int | None) -> Sequence[Request]:
    """Return at most so many of the requests, evenly spread over the workload."""
    if most is None or most >= len(requests):
        return requests
    return [requests[n * len(requests) // most] for n in range(most)]
