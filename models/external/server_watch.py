"""Watches an inference server: what it runs, and what it has to do.

    unknown ──describe──▶ accepted ──load, again and again──▶ observed
       ▲         └──▶ refused: it runs something else            │
       └─────────────── no answer, or a lost request ────────────┘

A server that was away may have come back with another model, so it is described again. If it has restarted, also while
it was away, ``on_restart`` is called: the requests that were sent before are lost, although a connection that is half
open says nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from headrace.models.engine.requests import EngineError
from headrace.models.external.upstream import ServerInfo, ServerLoad, Upstream, UpstreamLost

log = logging.getLogger(__name__)

_AWAY_S = 1.0  # between two questions to a server that is away or runs something else
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What the server said last. ``asked_at``: requests that were sent later are not in it.

    ``changed_at``: since then every answer was the same.
    """

    info: ServerInfo
    load: ServerLoad
    asked_at: float
    changed_at: float


class ServerWatch:
    """``run`` on the network's loop; other threads read ``latest`` and call ``doubt``.

    ``refuse`` returns why the version's requests must not be sent to such a server, or None. ``on_change`` is called
    after each answer that differs from the one before, ``on_restart`` after the first answer of a server that has
    restarted.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        refuse: Callable[[ServerInfo], str | None],
        on_change: Callable[[], None],
        on_restart: Callable[[], None] = lambda: None,
        poll_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._refuse = refuse
        self._on_change = on_change
        self._on_restart = on_restart
        self._poll_s = poll_s
        self._clock = clock
        self._info: ServerInfo | None = None
        self._latest: Observation | None = None
        self._load: ServerLoad | None = None  # of the last answer, also while the server is away
        self.why_not = "the inference server was not asked yet"
        """Why nothing is known of the server, or why it is refused."""

    @property
    def latest(self) -> Observation | None:
        """The last answer of an accepted server; None if it is away, silent or refused."""
        return self._latest

    def doubt(self) -> None:
        """Describe the server again before more requests are sent: it has lost one."""
        self._info = self._latest = None

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    is_accepted = await self._look()
            except (EngineError, TimeoutError) as error:
                self._away(str(error) or "the inference server does not answer")
                is_accepted = False
            except Exception as error:
                log.exception("server_watch_failed")
                self._away(f"the answer of the inference server could not be read ({type(error).__name__})")
                is_accepted = False
            await asyncio.sleep(self._poll_s if is_accepted else max(self._poll_s, _AWAY_S))

    async def _look(self) -> bool:
        """Ask the server; return False if it is refused. Raises UpstreamLost."""
        info = self._info
        if info is None:
            info = await self._upstream.describe()
            refusal = self._refuse(info)
            if refusal is not None:
                self._away(refusal)
                return False
            log.info("server_accepted engine_version=%s models=%s", info.engine_version, ",".join(info.models))
            self._info = info
        asked_at = self._clock()
        load = await self._upstream.load()
        if self._info is not info:
            raise UpstreamLost("a request was lost meanwhile")
        previous, self._load = self._load, load
        if previous is not None and _has_restarted(previous, load):
            self._on_restart()
            if self._latest is not None:  # so it was not described since
                raise UpstreamLost("the inference server has restarted")
        before = self._latest
        is_same = before is not None and before.load == load
        self._latest = Observation(info, load, asked_at, before.changed_at if before and is_same else asked_at)
        if not is_same:
            self._on_change()
        return True

    def _away(self, why: str) -> None:
        if why != self.why_not or self._info is not None:
            log.warning("server_not_used reason=%s", why)
        self.why_not = why
        self.doubt()


def _has_restarted(before: ServerLoad, now: ServerLoad) -> bool:
    """Return True if the server restarted between two answers, although both came."""
    return before.started_at != now.started_at or (before.num_tokens or 0) > (now.num_tokens or 0)
