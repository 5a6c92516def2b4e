"""Failpoints: nothing when none is armed; otherwise the named place, in the pass that was asked for, and no other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from headrace.store import failpoints
from headrace.store.failpoints import EXIT_CODE, Arming, FailpointRaised, ModelFault, failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.install("")


def passes_that_raise(num_passes: int) -> list[int]:
    """Pass ``claim.done`` a few times and return which passes raised."""
    raised = []
    for number in range(1, num_passes + 1):
        try:
            failpoint("claim.done")
        except FailpointRaised:
            raised.append(number)
    return raised


def test_nothing_happens_unless_armed() -> None:
    failpoints.install("renew.before=raise")
    assert passes_that_raise(3) == []
    failpoints.install("")
    failpoint("renew.before")


@pytest.mark.parametrize(
    ("spec", "raised"),
    [
        ("claim.done=raise", [1]),
        ("claim.done=raise@3", [3]),
        ("claim.done=raise*", [1, 2, 3, 4, 5]),
        ("claim.done=raise@4*", [4, 5]),
        ("claim.done=raise@2, claim.done=raise@5", [2, 5]),
    ],
)
def test_it_strikes_in_the_passes_that_were_asked_for(spec: str, raised: list[int]) -> None:
    failpoints.install(spec)
    assert passes_that_raise(5) == raised
    failpoints.install(spec)
    assert passes_that_raise(5) == raised, "arming anew counts anew"


def test_a_sleep_goes_on_afterwards() -> None:
    failpoints.install("claim.done=sleep:50")
    began = time.monotonic()
    failpoint("claim.done")
    assert time.monotonic() - began >= 0.05


def child(action: str) -> subprocess.Popen[bytes]:
    code = "from headrace.store import failpoints; "
    code += f"failpoints.install('claim.done={action}@2'); failpoints.failpoint('claim.done')"
    return subprocess.Popen([sys.executable, "-c", f"{code}; failpoints.failpoint('claim.done'); print('went on')"])


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("exit", EXIT_CODE)])
def test_a_process_ends_there(action: str, code: int) -> None:
    assert child(action).wait(30) == code


@pytest.mark.parametrize(("action", "state"), [("stop", os.WSTOPPED), ("hang", 0)])
def test_a_process_stands_still_there(action: str, state: int) -> None:
    process = child(action)
    try:
        if state:
            status = os.waitid(os.P_PID, process.pid, state)
            assert status is not None
            assert status.si_status == signal.SIGSTOP
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
    finally:
        process.kill()
        process.wait()


STOPS_OFTEN = """
import os, threading
from headrace.store import failpoints

failpoints.install("claim.done=stop*")

def work():
    while True:
        failpoints.failpoint("claim.done")
        os.write(2, b"x")

threading.Thread(target=work).start()
"""


def test_a_thread_stands_still_there_and_not_a_little_later() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPS_OFTEN], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    try:
        for number in range(30):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert (process.stderr.read() or b"") == (b"x" if number else b""), "what follows the place was done"
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_what_the_settings_mean() -> None:
    assert failpoints.parse_failpoints("claim.done=kill@2*, renew.before=sleep:20") == (
        Arming("claim.done", "kill", nth=2, repeats=True),
        Arming("renew.before", "sleep", sleep_ms=20),
    )
    assert failpoints.parse_model_faults("exit:poison heron, nan:bad:mark") == (
        ModelFault("exit", "poison heron"),
        ModelFault("nan", "bad:mark"),
    )
    assert failpoints.parse_failpoints("") == failpoints.parse_model_faults(" ") == ()
