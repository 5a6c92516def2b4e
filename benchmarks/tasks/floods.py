"""The first token of a chat beside floods of other tasks: ``python -m benchmarks.tasks.floods [TASK ...]``.

A local stack on one machine has a worker of a chat model and one of each task's model; without a task all of them.
For each task turns alternate: some streamed chats while no caller floods, as many while callers keep the task's worker
full, and as many beside programs that take as much CPU as the flood took and do nothing. All share the cores, so the
last one is the least that a flood costs. Each turn is compared with the turn alone before it; the table has the median
of these ratios with the least and the largest. A turn with a flood lasts until a request of the flood has ended. For
``embed`` a request of one text is timed in the same turns. With ``--gives-way`` the workers of the floods have
``HEADRACE_ENCODE_GIVES_WAY``. Prints a table and, as its last line, JSON. The machine must be calm: CPU of other
programs counts as the flood's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.batch import First, first_token
from benchmarks.path import cpu_name
from benchmarks.tasks.flood_requests import FLOODS, Flood
from headrace.cli.local.stack import Stack, running_stack
from headrace.store.settings import load_settings

console = Console(stderr=True, width=140)

CHAT = "smollm2"
CALLERS = 4
ALONE, BESIDE, BURNT = "alone", "beside the flood", "beside as much CPU"
MOST_S = 20.0
"""A turn ends after this time, also if no request of the flood has ended."""

# Takes a share of a core, in periods of 10 ms.
_BURN = """
import sys, time
share = float(sys.argv[1])
while True:
    began = time.perf_counter()
    while time.perf_counter() - began < share / 100:
        pass
    time.sleep(max(0.0, (1 - share) / 100))
"""


@dataclass(frozen=True)
class Turn:
    """The first tokens of some chats, requests of one text in ms, and what ran meanwhile.

    ``cores``: busy ones of the whole machine. ``ended``: requests of the flood.
    """

    mode: str
    seconds: float
    cores: float
    ended: int
    chats: list[First]
    small_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of the first tokens."""
        return statistics.median(chat.seen_ms for chat in self.chats)


def ratios(turns: Sequence[Turn]) -> dict[str, list[float]]:
    """Return by mode how many times as long the first token took as in the turn alone before it."""
    found: dict[str, list[float]] = {}
    alone = turns[0]
    for turn in turns:
        if turn.mode == ALONE:
            alone = turn
        else:
            found.setdefault(turn.mode, []).append(turn.median_ms / alone.median_ms)
    return found


@contextmanager
def flooded(stack: Stack, flood: Flood) -> Iterator[list[float]]:
    """Keep the worker full for the block; yield the times at which requests ended. Raises errors of requests."""
    ended: list[float] = []
    stopped = Event()
    numbers = count()

    def call() -> None:
        with _client(stack) as client:
            while not stopped.is_set():
                flood.send(client, next(numbers)).raise_for_status()
                ended.append(time.monotonic())

    with ThreadPoolExecutor(CALLERS) as pool:
        calls = [pool.submit(call) for _ in range(CALLERS)]
        try:
            time.sleep(1)
            yield ended
        finally:
            stopped.set()
        for each in calls:
            each.result()


@contextmanager
def burnt(cores: float) -> Iterator[None]:
    """Take so many cores for the block, the same share of each."""
    share = min(1.0, max(0.0, cores / (os.cpu_count() or 1)))
    burners = [subprocess.Popen([sys.executable, "-c", _BURN, str(share)]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _client(stack: Stack) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    return httpx2.Client(base_url=stack.api_url, headers=headers, timeout=300, trust_env=False)


def _busy_s() -> float:
    """Return the seconds that all cores of the machine have computed."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


class Turns:
    """Takes the turns of one task."""

    def __init__(self, stack: Stack, task: str, flood: Flood, num_chats: int) -> None:
        self._stack = stack
        self._chat = OpenAI(base_url=f"{stack.api_url}/v1", api_key=stack.api_key, max_retries=0)
        self._task = task
        self._flood = flood
        self._num_chats = num_chats
        self._numbers = count()
        self.taken: list[Turn] = []

    def take(self, mode: str) -> None:
        """Take one turn."""
        if mode == ALONE:
            self._take(mode, None)
        elif mode == BURNT:
            beside, alone = self.taken[-1], self.taken[-2]
            with burnt(beside.cores - alone.cores):
                self._take(mode, None)
        else:
            with flooded(self._stack, self._flood) as ended:
                self._take(mode, ended)
        console.log(f"{self._task} {mode}: {self.taken[-1].median_ms:.0f} ms")

    def warm_up(self) -> None:
        """Let both workers answer once, untimed."""
        first_token(self._chat, CHAT, -1)
        with _client(self._stack) as client:
            self._flood.send(client, 0).raise_for_status()

    def _take(self, mode: str, ended: list[float] | None) -> None:
        began, busy_s = time.monotonic(), _busy_s()
        before = len(ended or ())
        chats: list[First] = []
        small_ms: list[float] = []
        while len(chats) < self._num_chats or (
            ended is not None and len(ended) == before and time.monotonic() - began < MOST_S
        ):
            chats.append(first_token(self._chat, CHAT, next(self._numbers)))
            if self._task == "embed":
                small_ms.append(self._small_ms())
            time.sleep(0.12)  # so that the tenant has sent nothing for a moment, as people do who chat
        seconds = time.monotonic() - began
        num_ended = len(ended or ()) - before
        self.taken.append(Turn(mode, seconds, (_busy_s() - busy_s) / seconds, num_ended, chats, small_ms))

    def _small_ms(self) -> float:
        began = time.perf_counter()
        with _client(self._stack) as client:
            client.post("/v1/embeddings", json={"model": "minilm", "input": "a mill"}).raise_for_status()
        return (time.perf_counter() - began) * 1000


def measure(stack: Stack, task: str, flood: Flood, options: argparse.Namespace) -> list[Turn]:
    """Alternate the turns of a task and return them."""
    turns = Turns(stack, task, flood, options.chats)
    turns.warm_up()
    for mode in [ALONE, BESIDE, BURNT] * options.rounds:
        turns.take(mode)
    return turns.taken


def add_rows(table: Table, task: str, turns: Sequence[Turn]) -> None:
    """Add a row for each mode."""
    compared = ratios(turns)
    for mode in (ALONE, BESIDE, BURNT):
        of_mode = [turn for turn in turns if turn.mode == mode]
        chats = [chat for turn in of_mode for chat in turn.chats]
        queued, engine = (statistics.median(getattr(one, part) for one in chats) for part in ("queued_ms", "engine_ms"))
        around = statistics.median(one.seen_ms - one.queued_ms - one.engine_ms for one in chats)
        times = compared.get(mode)
        ratio = f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" if times else ""
        table.add_row(
            task,
            mode,
            f"{statistics.median(one.seen_ms for one in chats):.0f}",
            f"{around:.0f}",
            f"{queued:.0f}",
            f"{engine:.0f}",
            ratio,
            f"{sum(turn.ended for turn in of_mode) / sum(turn.seconds for turn in of_mode):.1f}",
            f"{statistics.median(turn.cores for turn in of_mode):.2f}",
            f"{statistics.median(small):.0f}" if (small := [ms for turn in of_mode for ms in turn.small_ms]) else "",
        )


@contextmanager
def flooding_stack(floods: Mapping[str, Flood], scratch: Path, *, gives_way: bool) -> Iterator[Stack]:
    """Yield a stack with the chat model and the models of the floods, which give way to the chat or do not."""
    settings = load_settings()
    # A home of its own, because jobs that an interrupted run left would run now; models are fetched once.
    home = scratch / "home"
    home.mkdir()
    (settings.home / "models").mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to((settings.home / "models").absolute())
    models = [CHAT, *(flood.model for flood in floods.values())]
    changes = {"HEADRACE_ENCODE_GIVES_WAY": str(gives_way).lower()}
    with running_stack(settings.model_copy(update={"home": home}), models, console.log, changes=changes) as stack:
        yield stack


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(FLOODS)}; without one all")
    parser.add_argument("--chats", type=int, default=8, help="in one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whisper", type=Path, help="a Whisper folder instead of a random one")
    parser.add_argument("--gives-way", action="store_true", help="HEADRACE_ENCODE_GIVES_WAY for the floods")
    options = parser.parse_args()
    if unknown := sorted({*options.tasks} - {*FLOODS}):
        parser.error(f"no flood of {', '.join(unknown)}: choose of {', '.join(FLOODS)}")
    began = time.monotonic()
    parts = ("task", "", "first token, ms", "API", "queue", "engine", "times alone", "flood requests/s", "busy cores")
    table = Table(*parts, "one text, ms")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        floods = {task: FLOODS[task](place, options.whisper) for task in options.tasks or FLOODS}
        with flooding_stack(floods, place, gives_way=options.gives_way) as stack:
            for task, flood in floods.items():
                turns = measure(stack, task, flood, options)
                add_rows(table, task, turns)
                found[task] = {"times_alone": ratios(turns), "turns": [asdict(turn) for turn in turns]}
    console.print(table)
    about = {"machine": cpu_name(), "load": os.getloadavg(), "seconds": round(time.monotonic() - began)}
    print(json.dumps({**vars(options), "tasks": found, **about}, default=str))


if __name__ == "__main__":
    main()
