"""Response models of model hosts."""

from typing import Literal

from pydantic import BaseModel, Field

from headrace.producer_api.http.views import seconds
from headrace.store.hosts.host_reports import HostEvent, HostPlace, HostReport, PlaceState


class HostPlaceObject(BaseModel):
    """A model version with a place on the host: its worker."""

    queue: str = Field(description="the model version")
    state: PlaceState = Field(description="`starting`: it loads; `serving`; `draining`: it ends its jobs and leaves")
    since: int | None = Field(description="when the state began, Unix seconds")
    memory_bytes: int = Field(description="memory that the version is counted with")
    used_bytes: int = Field(description="memory that its processes use now")


class HostEventObject(BaseModel):
    """Something that the host did or saw."""

    at: int | None = Field(description="when, Unix seconds")
    queue: str = Field(description="the model version")
    kind: str = Field(description="`started`, `serving`, `draining`, `ended` or `failed`")
    reason: str = Field(description="why")


class HostObject(BaseModel):
    """A model host: a process that starts and drains workers on its machine by what waits."""

    name: str = Field(description="name of the host")
    object: Literal["host"] = "host"
    started_at: int | None = Field(description="when its process started, Unix seconds")
    budget_bytes: int = Field(description="memory for its workers")
    needed_bytes: int = Field(description="memory that the versions with a place are counted with")
    used_bytes: int = Field(description="memory that its workers use now")
    num_swaps: int = Field(description="versions that gave their place to others since its start")
    asleep: list[str] = Field(description="versions without a place whose inference server sleeps, by name")
    places: list[HostPlaceObject] = Field(description="the versions with a place, by name")
    events: list[HostEventObject] = Field(description="the last events, newest first")


class HostList(BaseModel):
    """All live hosts."""

    object: Literal["list"] = "list"
    data: list[HostObject]


def host_object(host: HostReport) -> HostObject:
    """Return the host."""
    return HostObject(
        name=host.name,
        started_at=seconds(host.started_at),
        budget_bytes=host.budget_bytes,
        needed_bytes=host.needed_bytes,
        used_bytes=host.used_bytes,
        num_swaps=host.num_swaps,
        asleep=list(host.asleep),
        places=[_place(place) for place in host.places],
        events=[_event(event) for event in host.events],
    )


def _place(place: HostPlace) -> HostPlaceObject:
    return HostPlaceObject(
        queue=place.queue,
        state=place.state,
        since=seconds(place.since),
        memory_bytes=place.memory_bytes,
        used_bytes=place.used_bytes,
    )


def _event(event: HostEvent) -> HostEventObject:
    return HostEventObject(at=seconds(event.at), queue=event.queue, kind=event.kind, reason=event.reason)
