"""Verifies a registered model version before its worker takes a job: files, load, self-test. See docs/versions.md.

    claim ──▶ ready: load, and go on          (the digest is compared at every load)
          ──▶ rejected: the worker ends
          ──▶ another worker verifies it: wait, and claim again
          ──▶ ours: load, test ──▶ ready | rejected | given up, because this machine cannot tell

A fault of the version (files that are not the registered ones, pickled weights, a wrong answer, a quality outside the
bound of the model) rejects it for all workers. A fault of this machine (no such folder, too little memory) leaves it to
another worker.
"""

import resource
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog

from headrace.models.engine.requests import EngineError, NumericalError
from headrace.store.db.database import Database
from headrace.store.errors import CannotLoadHere, HeadraceError, ModelLoadError, VersionRejected
from headrace.store.failpoints import failpoint
from headrace.store.periodic import UNTIL_WOKEN, Periodic
from headrace.store.registry.verification import Verification, VersionStanding
from headrace.store.registry.verification_report import VerificationReport
from headrace.store.schema.version_states import VersionState
from headrace.store.settings import Settings
from headrace.workers.quality import UNMEASURED, QualityCheck, quality_fault, report_of
from headrace.workers.tasks.self_test import SelfTest
from headrace.workers.tasks.task_model import TaskModel

log = structlog.get_logger(__name__)

Tested = tuple[TaskModel, VerificationReport, str | None]
"""A loaded model, what was measured of it, and why it must be rejected, if it must."""

Test = Callable[[Callable[[], TaskModel], VerificationReport], Tested]

LOOK_S = 0.5
"""A worker that waits for the verdict of another one asks so often."""


def load_verified(
    verification: Verification, load: Callable[[], TaskModel], settings: Settings, quality: QualityCheck = UNMEASURED
) -> TaskModel:
    """Return the loaded model of a version that is ready; verify it if it is registered, or wait for the verifier.

    ``quality`` measures the version beside its reference. Raises VersionRejected, ModelLoadError if the version cannot
    be loaded, Unavailable, SettingsError.
    """
    is_waiting = False
    while True:
        found = verification.claim()
        if found.state is VersionState.READY:
            return load()
        if found.state is VersionState.REJECTED:
            raise _rejected(verification.name, found.reason)
        if found.is_ours:
            model = _verify(verification, load, partial(_test, found, settings=settings, quality=quality))
            if model is not None:
                return model
        elif not is_waiting:
            is_waiting = True
            log.info("verification_awaited", version=verification.name)
        time.sleep(LOOK_S)


def load_served(
    verification: Verification, load: Callable[[Callable[[str], None]], TaskModel], settings: Settings
) -> TaskModel:
    """Return the model of a version that an inference server runs, which is verified when a server is accepted.

    The server may come later, and a mismatch is a fault of the server, not of the version: nothing is rejected here.
    ``load`` gets the function to call with the description of a server that runs what was registered. Raises
    VersionRejected, ModelLoadError, Unavailable, SettingsError.
    """
    found = verification.claim()
    if found.state is VersionState.READY:
        return load(lambda said: None)
    if found.state is VersionState.REJECTED:
        raise _rejected(verification.name, found.reason)
    try:
        return load(partial(_accept_later, verification, settings))
    except ModelLoadError as error:
        verification.give_up(error.message)
        raise


def _accept_later(verification: Verification, settings: Settings, said: str) -> None:
    """Make the version ready, on a thread, because the caller is the network's loop."""

    def accept() -> None:
        db = Database(settings.database_url, pool_size=1, application_name="headrace verification")
        try:
            verification.on(db).accept_server(said)
        except HeadraceError as error:
            log.error("server_not_noted", version=verification.name, error=error.message)
        finally:
            db.close()

    threading.Thread(target=accept, name="verification").start()


def _verify(verification: Verification, load: Callable[[], TaskModel], test: Test) -> TaskModel | None:
    """Return the model if it passes; None if the lease was lost meanwhile. Raises as ``load_verified``."""
    log.info("verification_began", version=verification.name)
    report = VerificationReport(worker=verification.worker)
    model: TaskModel | None = None
    with _renewing(verification):
        try:
            model, report, fault = test(load, report)
        except (CannotLoadHere, EngineError) as error:
            verification.give_up(str(error))
            raise CannotLoadHere(str(error)) from error
        except ModelLoadError as error:
            fault = error.message
        except HeadraceError as error:
            verification.give_up(error.message)
            raise
        failpoint("verify.midway")
    if fault is None:
        return model if _is_accepted(verification, report) else None
    if model is not None:
        model.close()
    if not verification.reject(fault, report):
        return None
    log.error("version_rejected", version=verification.name, reason=fault)
    raise _rejected(verification.name, fault)


def _test(
    found: VersionStanding,
    load: Callable[[], TaskModel],
    report: VerificationReport,
    *,
    settings: Settings,
    quality: QualityCheck,
) -> Tested:
    """Load the model and test it; return it with what was measured, and why it must be rejected, if it must."""
    reference = quality.reference(is_needed=found.bound is not None)
    started_at = time.monotonic()
    model = load()
    load_s = time.monotonic() - started_at
    try:
        test = model.self_test(settings, found.golden)
    except NumericalError:
        test = SelfTest(fault="the self-test gave numbers that are not finite: the weights, or their number format")
    measured: dict[str, object] = {
        "dtype": test.dtype,
        "load_s": round(load_s, 3),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "context_tokens": test.context_tokens,
        "tokens_per_s": None if test.tokens_per_s is None else round(test.tokens_per_s, 1),
        "golden": ("matched" if found.golden else "recorded") if test.answers and test.fault is None else None,
        "answers": test.answers,
    }
    fault = test.fault
    if isinstance(reference, str):
        measured["not_measured"] = reference
    elif reference is not None and fault is None:
        measured["quality"] = distance = report_of(model, reference)
        fault = quality_fault(distance, found.bound)
    return model, report.model_copy(update=measured), fault


def _is_accepted(verification: Verification, report: VerificationReport) -> bool:
    if not verification.accept(report):
        return False
    log.info("version_ready", version=verification.name, load_s=report.load_s, tokens_per_s=report.tokens_per_s)
    return True


def _rejected(name: str, reason: str | None) -> VersionRejected:
    return VersionRejected(f"{name} was rejected: {reason}")


def _renewing(verification: Verification) -> Periodic:
    """Return a thread that extends the lease of the verification. If it is lost, the verdict will be refused."""

    def renew() -> float | None:
        return None if verification.renew() else UNTIL_WOKEN

    return Periodic("verification-lease", renew, verification.lease_s / 3)
