"""Failpoints: named places where a test can make a process fail, such as ``failpoint("finish.before")``.

Off unless ``HEADRACE_FAILPOINTS`` arms some, which the settings refuse outside of tests; a failpoint that
is not armed costs a look-up in an empty dictionary. The grammar of both fault settings is here;
``models.fakes.faults`` carries out the faults of a model.

    name=action[@n][*], …      kill, stop: SIGKILL and SIGSTOP to this process; exit; raise; hang; sleep:MS
                               at the first pass, or the n-th; with * at every pass from there on
"""

import os
import re
import signal
import threading
import time
from dataclasses import dataclass

import structlog

log = structlog.get_logger(__name__)

POINTS = frozenset(
    {
        "accept.before_commit",  # the rows are written, and gone with the process
        "accept.committed",  # the jobs are stored, the callers are not answered
        "hint.before_publish",
        "message.taken",  # out of Redis, its task has not run
        "claim.done",  # ours in Postgres, this process does not know it yet
        "flow.noting",  # a step is ours, its flow does not say that it has begun
        "flow.before_commit",  # a step has ended and the next one is ready, and neither is so without the process
        "approval.before_commit",  # a call is approved and its step is ready, and neither is so without the process
        "batch.midway",  # a step was computed, its tokens are not recorded
        "finish.before",
        "finish.committed",  # the outcome is stored, the followers are not notified
        "passages.before_commit",  # a file's passages and its job's end are written, and gone with the process
        "renew.before",
        "stream.published",  # frames are in Redis
        "webhook.accepted",  # the receiver answered 2xx, which is not stored
        "drain.midway",  # the engine is stopping, the jobs are not released
        "lines.before_commit",  # a batch's lines are written as jobs, and gone with the process
        "lines.committed",
        "results.before_commit",  # a batch's files are in the storage, their names are not stored
        "state.offered",  # an attempt gives its state, which is stored if the last one is old enough
        "state.saved",  # the state of an attempt is in the storage
        "result.kept",  # files of a job are in the storage, its end is not written
        "verify.midway",  # the model is loaded, the verdict is not stored
        "rollout.before_commit",  # a change of a rollout and its audit entry are written, and gone with the process
        "rollout.committed",  # a change of a rollout is stored, the caller is not answered
        "rollout.moving",  # queued jobs were moved to another version, not committed
        "schedules.run_stored",  # a run is stored, its schedule has not moved on
        "sweep.midway",  # jobs were taken from a dead worker or expired, not committed
    }
)

EXIT_CODE = 86
"""The exit status of the action ``exit``; no other part of Headrace uses it."""

_POINT = re.compile(r"([a-z_.]+)=(kill|stop|exit|raise|hang|sleep:(\d+))(?:@([1-9]\d*))?(\*)?")
_FAULT = re.compile(r"(exit|raise|oom|nan|hang|spin):(\S.*)")


class FailpointRaised(RuntimeError):
    """The error of the action ``raise``, which no handler expects."""


@dataclass(frozen=True, slots=True)
class Arming:
    """What happens at a point: ``action`` in its n-th pass, counted from 1, or in every one from there on."""

    point: str
    action: str
    nth: int = 1
    repeats: bool = False
    sleep_ms: int = 0

    def strikes(self, num_passes: int) -> bool:
        """True if this is one of its passes."""
        return num_passes == self.nth or (self.repeats and num_passes > self.nth)


@dataclass(frozen=True, slots=True)
class ModelFault:
    """What a step does that a prompt with ``mark`` takes part in: exit, raise, oom, nan, hang or spin."""

    kind: str
    mark: str


_armed: dict[str, list[Arming]] = {}
_num_passes: dict[str, int] = {}
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Carry out the action that a test armed for this name, if any. Raises FailpointRaised for the action ``raise``."""
    if _armed:
        _pass(name)


def install(spec: str) -> None:
    """Arm the points of ``HEADRACE_FAILPOINTS`` and no others, and count passes anew. Raises ValueError."""
    armings = parse_failpoints(spec)
    with _lock:
        _armed.clear()
        _num_passes.clear()
        for arming in armings:
            _armed.setdefault(arming.point, []).append(arming)


def parse_failpoints(spec: str) -> tuple[Arming, ...]:
    """Read ``name=action[@n][*], …``. Raises ValueError with a sentence about the malformed or unknown part."""
    return tuple(_arming(part) for part in _parts(spec))


def parse_model_faults(spec: str) -> tuple[ModelFault, ...]:
    """Read ``kind:MARK, …``. Raises ValueError with a sentence about the malformed or unknown part."""
    return tuple(_model_fault(part) for part in _parts(spec))


def _parts(spec: str) -> list[str]:
    return [part.strip() for part in spec.split(",")] if spec.strip() else []


def _arming(part: str) -> Arming:
    match = _POINT.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is not name=action[@n][*] with kill, stop, exit, raise, hang or sleep:MS")
    point, action, sleep_ms, nth, repeats = match.groups()
    if point not in POINTS:
        raise ValueError(f"there is no failpoint {point!r}: {', '.join(sorted(POINTS))}")
    return Arming(point, action.partition(":")[0], int(nth or 1), repeats is not None, int(sleep_ms or 0))


def _model_fault(part: str) -> ModelFault:
    match = _FAULT.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is not kind:MARK with exit, raise, oom, nan, hang or spin")
    return ModelFault(match[1], match[2])


def _pass(name: str) -> None:
    with _lock:
        num_passes = _num_passes[name] = _num_passes.get(name, 0) + 1
        struck = [arming for arming in _armed.get(name, ()) if arming.strikes(num_passes)]
    for arming in struck:
        log.warning("failpoint", point=name, action=arming.action, num_passes=num_passes)
        _strike(arming)


def _strike(arming: Arming) -> None:
    match arming.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            # To this thread: one that is sent to the process stops another thread first, and this one a little later.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case "exit":
            os._exit(EXIT_CODE)
        case "raise":
            raise FailpointRaised(f"failpoint {arming.point}")
        case "hang":
            threading.Event().wait()
        case _:
            time.sleep(arming.sleep_ms / 1000)
