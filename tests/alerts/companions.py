"""The alerts that the fault of another alert may fire too, because it reaches what they watch. Others are false.

The groups name what a fault reaches.
"""

from itertools import chain

_WORKERS_GONE = frozenset(
    {
        "HeadraceWorkerDown",
        "HeadraceWorkerRestarts",
        "HeadraceQueueWithoutWorker",
        "HeadraceInteractiveWaits",
        "HeadraceLeasesExpire",
        "HeadraceDeadLetters",
        "HeadraceFirstTokenSlow",
        "HeadraceStreamsStall",
    }
)
_WORKERS_STOPPED = _WORKERS_GONE | {"HeadraceLeasesLost", "HeadraceStaleWrites", "HeadraceCommitsSlow"}
_POSTGRES_OF_WORKERS = _WORKERS_STOPPED | {"HeadraceOutcomesLost"}
_API_STOPPED = frozenset(
    {"HeadraceApiDown", "HeadraceSubmitsSlow", "HeadraceEventLoopLags", "HeadraceCommitsSlow", "HeadraceRequestsFail"}
)
_POSTGRES_OF_API = _API_STOPPED | {"HeadracePostgresAway"}
_DISPATCHER_GONE = frozenset({"HeadraceDispatcherDown", "HeadraceNoLeader", "HeadraceDutyFails"})
_CANDIDATE = frozenset({"HeadraceWorkerDown", "HeadraceQueueWithoutWorker"})

MAY_FIRE_TOO: dict[str, frozenset[str]] = {
    "HeadraceApiDown": _API_STOPPED,
    "HeadraceWorkerDown": _WORKERS_GONE,
    "HeadraceDispatcherDown": _DISPATCHER_GONE,
    "HeadraceNoLeader": _DISPATCHER_GONE,
    "HeadraceDispatcherHangs": _DISPATCHER_GONE | _POSTGRES_OF_API | _POSTGRES_OF_WORKERS,
    "HeadraceWorkerRestarts": _WORKERS_GONE,
    "HeadracePostgresAway": _POSTGRES_OF_API,
    "HeadraceCommitsSlow": _POSTGRES_OF_WORKERS,
    "HeadraceRequestsFail": _POSTGRES_OF_API,
    "HeadraceSubmitsSlow": _API_STOPPED,
    # The API is started anew, with another limit.
    "HeadraceRefused": _API_STOPPED,
    "HeadraceEventLoopLags": _API_STOPPED,
    "HeadraceQueueWithoutWorker": _WORKERS_GONE,
    "HeadraceInteractiveWaits": _WORKERS_GONE,
    "HeadraceDeadlineNear": _WORKERS_GONE | {"HeadraceJobsExpire"},
    "HeadraceQueuePaused": frozenset({"HeadraceInteractiveWaits"}),
    # The dispatcher is started anew, with other settings; so are the workers of the cases that name _WORKERS_GONE.
    "HeadraceWorkersMissing": _DISPATCHER_GONE,
    "HeadraceJobsExpire": _WORKERS_GONE | {"HeadraceDeadlineNear"},
    "HeadraceFlowsStuck": frozenset({"HeadraceQueuePaused"}),
    "HeadraceDeadLetters": _WORKERS_GONE,
    "HeadraceLeasesExpire": _WORKERS_GONE,
    "HeadraceLeasesLost": _WORKERS_STOPPED,
    "HeadraceStaleWrites": _WORKERS_STOPPED,
    "HeadraceOutcomesLost": _POSTGRES_OF_WORKERS,
    "HeadraceFirstTokenSlow": _WORKERS_GONE,
    "HeadraceStreamsStall": _WORKERS_STOPPED,
    "HeadraceEngineHangs": _WORKERS_GONE,
    # The queue is paused for some seconds.
    "HeadracePreemptions": _WORKERS_GONE | {"HeadraceQueuePaused"},
    # The worker of the candidate is scraped while it starts, and is stopped at the end.
    "HeadraceRolloutRolledBack": _CANDIDATE | {"HeadraceRolloutUndecided"},
    "HeadraceRolloutStuck": _CANDIDATE | {"HeadraceRolloutUndecided"},
    "HeadraceRolloutUndecided": _CANDIDATE,
    # The jobs of a version without a place wait.
    "HeadraceHostStartsFail": frozenset({"HeadraceQueueWithoutWorker"}),
    "HeadraceHostThrashes": frozenset({"HeadraceQueueWithoutWorker"}),
    "HeadraceWebhooksLate": frozenset({"HeadraceWebhooksFail"}),
    "HeadraceWebhooksFail": frozenset({"HeadraceWebhooksLate"}),
    "HeadraceEndpointDisabled": frozenset({"HeadraceWebhooksFail"}),
}


def false_alerts(fired: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return by case the alerts that nothing explains: neither its fault nor the one before, whose windows go on.

    ``fired``: by case, in the order of the run, the alerts that fired beside its own.
    """
    found = {}
    before: frozenset[str] = frozenset()
    for name, others in fired.items():
        known = MAY_FIRE_TOO.get(name, frozenset())
        if unknown := others - known - before:
            found[name] = unknown
        before = known | {name}
    return found


def named() -> set[str]:
    """Return all alerts that this module names."""
    return {*MAY_FIRE_TOO, *chain.from_iterable(MAY_FIRE_TOO.values())}
