"""What a caller reads of a version that no worker serves: a refusal, or a warning with the outlook of a model host."""

from headrace.store.errors import Conflict, NoWorker
from headrace.store.hosts.host_reports import HostOutlook
from headrace.store.registry.models import ModelVersion, queue_name
from headrace.store.schema.version_states import VersionState


def refusal(queue: str, outlook: HostOutlook | None) -> NoWorker | None:
    """Return the error where the settings require a worker; None if a model host starts one for the job."""
    if outlook is not None and outlook.in_s is not None:
        return None
    why = "" if outlook is None else f" ({outlook.text})"
    return NoWorker(f"no worker serves {queue}{why}: start one, or ask for another model", param="model")


def warning(version: ModelVersion, outlook: HostOutlook | None) -> str:
    """Return the warning beside an accepted job."""
    is_verified = version.state is VersionState.READY
    missing = "no worker serves" if is_verified else "no worker has verified"
    until = f"the job waits until one {'starts' if is_verified else 'has'}"
    return f"{missing} {queue_name(version.model, version.version)}; {_by_host(outlook, until)}"


def rejected(version: ModelVersion) -> Conflict:
    """Return the error for a version that failed its verification."""
    queue = queue_name(version.model, version.version)
    why = f"{queue} has failed its verification, so no worker runs it: {version.state_reason}"
    return Conflict(why, code="model_rejected", param="model")


def _by_host(outlook: HostOutlook | None, until: str) -> str:
    """Return what follows for a job of a queue without a worker. ``until``: what is so without a model host."""
    if outlook is None:
        return until
    if outlook.in_s is None:
        return f"{until}, and no model host starts one: {outlook.text}"
    return f"a model host loads it in about {max(1, round(outlook.in_s))} s"
