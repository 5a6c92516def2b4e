"""Rounds in which all contestants take turns, so that what the machine does meanwhile hits all alike.

Every contestant's process is started before the first round and waits, idle, while the others compute. One that does
not come up, or fails in a run, is out with the reason; the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.engine.agreement import agreement, beginnings
from benchmarks.engine.contestants import Contestant
from benchmarks.engine.measured import Measured, WrongAnswer, measured
from benchmarks.engine.peers.wire import Answer, Request
from benchmarks.engine.process import DoesNotRun, PeerProcess
from benchmarks.engine.quiet import QUIET_CPUS, wait_until_quiet, watched
from benchmarks.engine.workloads import Encode, Shape, arriving, requests_of
from benchmarks.venvs import CannotInstall

Say = Callable[[str], None]

OPEN_LOOP = "open loop"
SLOTS = 64
_WARM_UP = Shape(requests=8, prompt=(16, 300), output=(4, 24))


@dataclass(frozen=True)
class Round:
    """What all contestants compute in turn. ``load`` are the requests a second of an open loop, None if all come at
    t = 0; ``slots`` is how many may run together.
    """

    workload: str
    shape: Shape
    slots: int
    number: int
    load: float | None = None


@dataclass(frozen=True)
class Turn:
    """What one contestant did in one round, with the slots that it really had; ``others_cpus`` is what other processes
    took meanwhile.
    """

    contestant: str
    round: Round
    slots: int
    figures: Measured
    others_cpus: float = 0.0

    def __str__(self) -> str:
        at = "" if self.round.load is None else f" at {self.round.load:g} requests/s"
        disturbed = f", others took {self.others_cpus} CPUs" if self.others_cpus > QUIET_CPUS else ""
        return (
            f"{self.round.workload}{at}, {self.contestant}, {self.slots} slots: {self.figures.tokens_per_s:.0f} "
            f"tokens/s, TTFT {self.figures.ttft_mean_s:.2f} s, {self.figures.peak_mb:.0f} MB{disturbed}"
        )


@dataclass(frozen=True)
class Quiet:
    """How long a turn waits for others to be quiet, and how often it is played at most if they are not."""

    wait_s: float = 60.0
    tries: int = 3


class Field:
    """The contestants that run, by name, and why the others do not."""

    def __init__(self, model: Path, encode: Encode, seed: int, say: Say, quiet: Quiet) -> None:
        self.refusals: dict[str, str] = {}
        self.ready: dict[str, dict[str, object]] = {}
        self.turns: list[Turn] = []
        self._model, self._encode, self._seed, self._say, self._quiet = model, encode, seed, say, quiet
        self._running: dict[str, PeerProcess] = {}
        self._num_texts = 0

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
            self._play(contestants, Round(name, shape, slots, number))

    def rising_load(
        self, contestants: Sequence[Contestant], shape: Shape, slots: int, loads: Sequence[float], seconds: float
    ) -> None:
        """Let all meet the same Poisson arrivals, for about ``seconds`` at each load."""
        for number, load in enumerate(loads):
            some = replace(shape, requests=max(1, round(load * seconds)))
            self._play(contestants, Round(OPEN_LOOP, some, slots, number, load))

    def agreements(self, contestants: Sequence[Contestant], reference: Contestant, count: int) -> dict[str, float]:
        """Return the share of ``count`` next tokens in which each contestant that tells its tokens agrees."""
        asked = beginnings(self._encode, count)
        self._say(f"{reference.name} finds {count} next tokens")
        with self.running([reference]):
            expected = self.ask(reference, SLOTS, asked)
        if expected is None:
            return {}
        compared = [each for each in contestants if each.tells_tokens and each.name not in self.refusals]
        with self.running(compared):
            answers = {each.name: self.ask(each, SLOTS, asked) for each in compared}
        return {name: round(agreement(expected, answer), 4) for name, answer in answers.items() if answer is not None}

    def ask(self, contestant: Contestant, slots: int, requests: Sequence[Request]) -> Answer | None:
        """Run requests; None if the contestant is out."""
        if (process := self._running.get(contestant.name)) is None or contestant.name in self.refusals:
            return None
        try:
            return process.ask(contestant.slots or slots, requests)
        except DoesNotRun as error:
            self._refuse(contestant, error)
            return None

    def fresh(self, shape: Shape) -> tuple[Request, ...]:
        """Return a workload with words that no run has seen, so that no contestant finds them cached."""
        self._num_texts += 1
        return requests_of(shape, self._encode, self._seed, self._num_texts)

    def _play(self, contestants: Sequence[Contestant], round_: Round) -> None:
        """Let one after the other compute the same requests; a turn that is repeated gets other words."""
        tries = [self.fresh(round_.shape) for _ in range(self._quiet.tries)]
        if round_.load is not None:
            tries = [arriving(each, round_.load, self._seed) for each in tries]
        for each in contestants:
            if each.name in self._running and each.name not in self.refusals:
                self._turn(each, round_, [spread(requests, each.most) for requests in tries])

    def _turn(self, contestant: Contestant, round_: Round, tries: Sequence[Sequence[Request]]) -> None:
        """Take the first try without other load, or the least disturbed."""
        turns: list[Turn] = []
        for requests in tries:
            wait_until_quiet(self._quiet.wait_s, self._say)
            self.ask(contestant, round_.slots, self.fresh(_WARM_UP))
            with watched() as others:
                answer = self.ask(contestant, round_.slots, requests)
            if (figures := self._figures(contestant, requests, answer)) is None:
                return
            slots = contestant.slots or round_.slots
            turns.append(Turn(contestant.name, round_, slots, figures, others.cpus))
            self._say(f"  {turns[-1]}")
            if others.cpus <= QUIET_CPUS:
                break
        self.turns.append(min(turns, key=lambda each: each.others_cpus))

    def _figures(self, contestant: Contestant, requests: Sequence[Request], answer: Answer | None) -> Measured | None:
        try:
            return None if answer is None else measured(requests, answer)
        except WrongAnswer as error:
            self._refuse(contestant, error)
            return None

    def _refuse(self, contestant: Contestant, error: Exception) -> None:
        self._say(f"  {contestant.name} is absent: {error}")
        self.refusals[contestant.name] = str(error)


def spread(requests: Sequence[Request], most: int | None) -> Sequence[Request]:
    """Return at most so many of the requests, evenly spread over the workload."""
    if most is None or most >= len(requests):
        return requests
    return [requests[n * len(requests) // most] for n in range(most)]
