"""What a feature adds to the API."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.routing import BaseRoute

from headrace.producer_api.runtime import Runtime
from headrace.store.keeper import Duty
from headrace.store.settings import Settings


class ApiWork:
    """What a feature keeps or runs in each API process beside the requests. A feature overrides what it needs.

    ``duties``: groups, as of ``store.keeper``. They run in one API process at a time.
    """

    duties: Sequence[Sequence[Duty]] = ()

    def start(self) -> None:
        """Start, after the process has its connections. Must not block."""

    def stop(self) -> None:
        """Stop, before they close. May block for some seconds."""


def _no_pages(_settings: Settings) -> Sequence[BaseRoute]:
    return ()


@dataclass(frozen=True, slots=True)
class ApiPart:
    """The ``PART`` of a feature's file ``api``.

    ``routers`` are documented, ``pages`` are not. ``work`` makes what is kept beside the requests of one application. A
    route finds it in ``request.app.state.works``, under ``work``.
    """

    routers: Sequence[APIRouter] = ()
    pages: Callable[[Settings], Sequence[BaseRoute]] = _no_pages
    work: Callable[[Runtime], ApiWork] | None = None
