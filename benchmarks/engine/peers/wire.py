"""The protocol between a contestant's process and the benchmark. Standard library only.

A line of JSON each way. The process writes ``{"ready": …}`` once its weights are loaded; each line that it then gets is
a run, requests with their times of arrival, and each is answered with when every token came. It ends with its input.

    asks     {"slots": 16, "requests": [{"id": "r0", "prompt": [1, 2], "max_tokens": 8, "at_s": 0.0}, …]}
    answers  {"outcomes": [{"id": "r0", "token_ids": [5, …], "times_s": [0.21, …]}, …], "seconds": 9.1, …}
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """Greedy, end-of-sequence ignored: exactly ``max_tokens`` are wanted. It arrives ``at_s`` after the run began."""

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    at_s: float = 0.0


@dataclass
class Outcome:
    """The tokens of one request, and how long after the run's beginning each came."""

    id: str
    token_ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ask:
    """One run: at most ``slots`` requests may be computed at a time."""

    slots: int
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Answer:
    """What came of a run. ``peak_mb`` is the most resident memory of the process during it, in units of 10⁶ bytes.

    ``kv_peak`` is the largest share of the KV cache that was in use, 0 if the peer does not say.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    peak_mb: float
    kv_peak: float = 0.0


class Clock:
    """The run's time; notes tokens as they come."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.outcomes = {each.id: Outcome(each.id) for each in requests}
        self.kv_peak = 0.0
        self._began = time.perf_counter()

    def now_s(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self._began

    def note(self, request_id: str, token_ids: Iterable[int]) -> None:
        """Count tokens as come now."""
        now = self.now_s()
        outcome = self.outcomes[request_id]
        for token_id in token_ids:
            outcome.token_ids.append(token_id)
            outcome.times_s.append(now)

    def note_kv(self, share: float) -> None:
        """Note the share of the KV cache that is in use now."""
        self.kv_peak = max(self.kv_peak, share)


def step_through(
    ask: Ask, add: Callable[[Request], None], step: Callable[[Clock], None], has_work: Callable[[], bool]
) -> Clock:
    """Drive an engine step by step: submit the requests that have arrived, take a step, until all have ended."""
    clock = Clock(ask.requests)
    waiting = sorted(ask.requests, key=lambda each: each.at_s)
    while waiting or has_work():
        while waiting and waiting[0].at_s <= clock.now_s():
            add(waiting.pop(0))
        if has_work():
            step(clock)
        elif waiting:
            time.sleep(max(0.0, waiting[0].at_s - clock.now_s()))
    return clock


def submit_on_time(clock: Clock, requests: Sequence[Request], submit: Callable[[Request], None]) -> None:
    """Hand in each request when it arrives, to an engine that has threads of its own."""
    for each in sorted(requests, key=lambda each: each.at_s):
        if (early_s := each.at_s - clock.now_s()) > 0:
            time.sleep(early_s)
        submit(each)


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Do the work in a thread that has ended when the block has."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def in_threads(ask: Ask, follow: Callable[[Request, Clock], None]) -> Clock:
    """Follow every request in a thread of its own, as clients of a server do. Raises what a thread raised."""
    clock = Clock(ask.requests)
    with ThreadPoolExecutor(len(ask.requests)) as pool:
        followed: list[Future[None]] = []
        submit_on_time(clock, ask.requests, lambda each: followed.append(pool.submit(follow, each, clock)))
        for future in followed:
            future.result()
    return clock


@dataclass(frozen=True)
class Loaded:
    """An engine that is ready. ``prepare`` gets it to a number of slots, off the clock; ``pids`` are the processes
    that count for memory; ``stop`` ends all started processes; ``facts`` are printed with the version.
    """

    run: Callable[[Ask], Clock]
    version: str
    prepare: Callable[[int], object] = lambda slots: None
    pids: Callable[[], Sequence[int]] = lambda: (os.getpid(),)
    stop: Callable[[], None] = lambda: None
    facts: Mapping[str, float] = field(default_factory=dict)


def serve(load: Callable[[], Loaded]) -> None:
    """Load, then answer runs until the input ends.

    The answers get the standard output to themselves: what libraries print goes to the standard error.
    """
    with os.fdopen(os.dup(1), "w") as out, ExitStack() as cleanup:
        os.dup2(2, 1)
        began = time.perf_counter()
        loaded = load()
        cleanup.callback(loaded.stop)
        ready = {"version": loaded.version, "load_s": round(time.perf_counter() - began, 2), **loaded.facts}
        print(json.dumps({"ready": ready}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(_answer(loaded, decode_ask(line)))), file=out, flush=True)


def _answer(loaded: Loaded, ask: Ask) -> Answer:
    loaded.prepare(ask.slots)
    for pid in (pids := loaded.pids()):
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    clock = loaded.run(ask)
    seconds = max(outcome.times_s[-1] for outcome in clock.outcomes.values())
    peak = round(sum(map(peak_mb, pids)), 1)
    return Answer(tuple(clock.outcomes.values()), seconds, peak, round(clock.kv_peak, 3))


def peak_mb(pid: int) -> float:
    """Return the most memory that the process had resident since its peak last began anew."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def encode_ask(ask: Ask) -> str:
    """Return the line that asks for a run."""
    return json.dumps(asdict(ask))


def decode_ask(line: str) -> Ask:
    """Read what ``encode_ask`` wrote."""
    found = json.loads(line)
    requests = tuple(Request(**{**each, "prompt": tuple(each["prompt"])}) for each in found["requests"])
    return Ask(found["slots"], requests)


def decode_answer(found: dict[str, Any]) -> Answer:
    """Read an answer from its JSON."""
    outcomes = tuple(Outcome(**each) for each in found["outcomes"])
    return Answer(outcomes, found["seconds"], found["peak_mb"], found["kv_peak"])
