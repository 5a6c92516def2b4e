"""The engine on a real vLLM with the demo model: ``python -m tests.models.external.demo_on_vllm FOLDER ENVIRONMENT``.

Sixteen greedy answers beside those of the same server asked directly; a cancel, a kill -9 and a SIGSTOP in the middle
of a stream. One line each, with what was seen.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from headrace.models.engine.requests import EngineRequest, FinishReason, SamplingParams
from headrace.models.external.upstream import UpstreamLost
from tests.models.external.engines import Rig, wait_until
from tests.models.external.real_vllm import RealVllm, real_vllm

NUM_ANSWERS = 16
MAX_TOKENS = 32
LONG = 400
WAIT_S = 300.0
TOPICS = (
    *("The mill by the river", "A recipe for bread", "Once upon a time", "The capital of France is"),
    *("def fibonacci(n):", "Water boils at", "In the year 1848", "Dear Sir or Madam", "The three laws of"),
    *("How to tie a knot", "My grandmother used to", "An oak tree", "The train left at", "Light is"),
    *("Two plus two", "To be or not"),
)


def main(folder: Path, environment: Path) -> None:
    server = RealVllm(environment / "bin" / "python", folder)
    try:
        with real_vllm(server, prompts=TOPICS) as rig:
            say(f"greedy answers equal to the server's own: {_equal_answers(rig)} of {NUM_ANSWERS}")
            say(f"cancelled; the server's running count was 0 after {_cancel_s(rig):.2f} s")
            say(f"kill -9 while streaming: {_killed(rig, server)}")
            say(f"SIGSTOP while streaming: {_stopped(rig, server)}")
    finally:
        server.close()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _equal_answers(rig: Rig) -> int:
    """Run all together, and then each alone on the server."""
    requests = [rig.ask(number, max_tokens=MAX_TOKENS) for number in range(NUM_ANSWERS)]
    done = []
    for request in requests:
        wait_until(lambda: rig.engine.can_admit(16, MAX_TOKENS), WAIT_S)
        done.append(rig.engine.submit(request))
    found = [future.result(WAIT_S).token_ids for future in done]
    return sum(tokens == rig.direct(request) for tokens, request in zip(found, requests, strict=True))


@contextmanager
def _streaming(rig: Rig) -> Iterator[EngineRequest]:
    request = rig.ask(max_tokens=LONG, ignore_eos=True)
    rig.deltas.clear()
    wait_until(lambda: rig.engine.can_admit(1, LONG), WAIT_S)
    future = rig.engine.submit(request)
    wait_until(lambda: len(rig.deltas) >= 5, WAIT_S)
    yield request
    rig.engine.cancel(request.id)
    future.exception(WAIT_S)


def _cancel_s(rig: Rig) -> float:
    with _streaming(rig) as request:
        started = time.monotonic()
        rig.engine.cancel(request.id, FinishReason.CANCELLED)
        rig.wait_idle()
        return time.monotonic() - started


def _killed(rig: Rig, server: RealVllm) -> str:
    """Kill the server, start it again, and go on."""
    request = rig.ask(max_tokens=64, ignore_eos=True)
    rig.deltas.clear()
    future = rig.engine.submit(request)
    wait_until(lambda: len(rig.deltas) >= 5, WAIT_S)
    server.restart()
    error = future.exception(WAIT_S)
    if not isinstance(error, UpstreamLost) or error.progress is None:
        return f"unexpected: {error!r}"
    wait_until(lambda: rig.engine.can_admit(1, 64), WAIT_S)
    progress = error.progress
    again = replace(
        request,
        id="again",
        sampling=SamplingParams(64, ignore_eos=True),
        emitted=tuple(chain(*progress.token_ids)),
        emitted_deltas=progress.deltas,
    )
    is_equal = rig.engine.submit(again).result(WAIT_S).token_ids == rig.direct(request)
    return f"lost with {len(again.emitted)} tokens kept, went on, equal to an uninterrupted answer: {is_equal}"


def _stopped(rig: Rig, server: RealVllm) -> str:
    with _streaming(rig):
        server.freeze()
        started = time.monotonic()
        wait_until(lambda: not rig.engine.is_healthy(10.0), WAIT_S)
        seconds = time.monotonic() - started
        server.go_on()
        wait_until(lambda: rig.engine.is_healthy(10.0), WAIT_S)
        return f"unhealthy after {seconds:.1f} s with a limit of 10 s, healthy again after SIGCONT"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
