"""Reads token streams: one pub/sub connection per API process, fanned out to every follower.

A follower subscribes, waits until Redis has confirmed it, reads the replay log from its cursor, and then receives the
published frames. Frames that might be missing (a gap, a full queue, a lost connection) are read from the log again. A
gap that the log cannot fill is never skipped. There are no jobs and no HTTP here.

A message or an entry that cannot be read is skipped, and after any failure the hub connects again: one connection
serves all followers, so no message may end it.

    follow ──SUBSCRIBE, confirmed──▶ read the log ──▶ live frames ──gap, overflow, reconnect──▶ read the log …
                                                          └── end frame ──▶ stop
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from enum import StrEnum
from typing import Any, TypeGuard, TypeVar

import redis
import structlog
from redis.asyncio.client import PubSub

from headrace.store.errors import CannotOpen
from headrace.store.redis.connection import AWAY, connect_async
from headrace.store.redis.key_notices import KEYS_CHANNEL
from headrace.store.seal import PLAIN, Seal
from headrace.store.streams.stream_log import Frame, StreamCursor, read_frame, stream_key

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_KEEPALIVE_CHANNEL = "headrace:stream:keepalive"
RECONNECT_S = 0.1
PING_AFTER_S = 5.0
ANSWER_S = 2.0
TICK_S = 1.0
# A confirmed subscription loses nothing, so the log is read again only now and then, in case that is wrong.
REREAD_EVERY_TICKS = 5
_LOG_AGAIN_S = 10.0
_QUEUE_FRAMES = 256
_PAGE = 512


class HubError(StrEnum):
    """The kinds of error: an unreadable message, an unreadable log entry, a lost or failed subscription."""

    MESSAGE = "message"
    LOG_ENTRY = "log_entry"
    CONNECTION = "connection"


class _Follower:
    """The inbox of one reader: frames, None as a wake-up, and whether the log must be read first."""

    def __init__(self) -> None:
        self.is_behind = True
        # Whether the reader has received a frame since the last tick.
        self.was_served = False
        self._inbox: deque[Frame | None] = deque()
        self._arrival: asyncio.Future[None] | None = None  # the reader waits for it while the inbox is empty

    def deliver(self, frame: Frame | None) -> None:
        """Deliver a frame. A reader that is too slow reads the log instead and does not delay the others."""
        if len(self._inbox) >= _QUEUE_FRAMES:
            self.is_behind = True
            return
        self._inbox.append(frame)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def mark_behind(self) -> None:
        """Make the reader read the log, now if it is waiting."""
        if not self.is_behind:
            self.is_behind = True
            self._wake()

    def tick(self) -> None:
        """Wake the reader if it has received nothing since the last tick."""
        if self.was_served:
            self.was_served = False
        else:
            self._wake()

    def _wake(self) -> None:
        if not self._inbox:
            self.deliver(None)

    async def next(self) -> Frame | None:
        """Wait for the next frame; None is a wake-up."""
        while not self._inbox:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        return self._inbox.popleft()


class _Channel:
    """The followers of one job and whether Redis has confirmed the subscription on the connection in use."""

    def __init__(self) -> None:
        self.followers: set[_Follower] = set()
        self.confirmed = asyncio.Event()

    def confirm(self) -> None:
        """Record that nothing published from now on is missed; earlier frames are in the log."""
        self.confirmed.set()
        for follower in self.followers:
            follower.mark_behind()


class Hub:
    """Follows any number of jobs over one subscription. ``start`` and ``stop`` are called in the event loop.

    ``on_key_changed`` is called in the event loop with the ids that ``store.redis.key_notices`` publishes; ``on_error``
    with the kind of each error that the hub has recovered from.
    """

    def __init__(
        self,
        redis_url: str,
        seal: Seal = PLAIN,
        *,
        on_key_changed: Callable[[str], None] = lambda _: None,
        on_error: Callable[[HubError], None] = lambda _: None,
    ) -> None:
        self._seal = seal
        self._on_key_changed = on_key_changed
        self._on_error = on_error
        self._logged_at: dict[HubError, float] = {}
        self._subscriber = connect_async(redis_url, blocking=True)
        self._reader = connect_async(redis_url, blocking=False)
        self._channels: dict[str, _Channel] = {}
        # SUBSCRIBEs sent and not yet answered; only the answer to the newest one means that nothing is missed.
        self._unanswered: Counter[str] = Counter()
        # Set only while connected: a SUBSCRIBE sent earlier would open a second connection without a reader.
        self._pubsub: PubSub | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._commands: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        """Connect in the background; followers may come at once, with Redis away as well."""
        self._tasks = [
            asyncio.create_task(self._run(), name="stream-hub"),
            asyncio.create_task(self._tick(), name="stream-hub-ticks"),
        ]

    async def stop(self) -> None:
        """Close the connections; remaining followers receive None until they leave."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._commands:
            await asyncio.wait(self._commands, timeout=ANSWER_S)
        await self._subscriber.aclose()
        await self._reader.aclose()

    @property
    def num_channels(self) -> int:
        """The number of followed jobs."""
        return len(self._channels)

    @property
    def is_connected(self) -> bool:
        """True while published frames are received. Otherwise followers read the log at every tick."""
        return _is_connected(self._pubsub)

    async def follow(self, job_id: str, after: StreamCursor | None = None) -> AsyncGenerator[Frame | None]:
        """Yield the job's frames after the cursor, in order and without a gap, ending with its end frame.

        The start of a newer attempt comes before its deltas, and after no delta that it lacks.
        While there is no frame, None is yielded about once a second, to all waiting followers at the same moment, and
        when a notice comes that the job has changed. The caller then reads Postgres, which also has the frames that a
        capped or wiped log has lost. The first None comes one to two seconds after a frame.
        """
        name = stream_key(job_id)
        follower = _Follower()
        channel = await self._join(name, follower)
        try:
            async with aclosing(self._frames(job_id, channel, follower, after or StreamCursor())) as frames:
                async for frame in frames:
                    yield frame
        finally:
            await self._leave(name, follower)

    async def _frames(
        self, job_id: str, channel: _Channel, follower: _Follower, cursor: StreamCursor
    ) -> AsyncGenerator[Frame | None]:
        num_ticks = 0
        gap: StreamCursor | None = None  # where the log was read because of a gap; only once for each gap
        came_with = cursor
        while True:
            if follower.is_behind:
                follower.is_behind = False
                # The reader may have returned in the middle of the deltas that its attempt's start carries.
                start = f"{cursor.epoch}-0" if cursor == came_with else f"({cursor}"
                for frame in await self._read_log(job_id, start, cursor):
                    cursor, follower.was_served = frame.cursor, True
                    yield frame
                    if frame.is_end:
                        return
            live = await follower.next()
            if live is None:
                if not follower.is_behind:
                    num_ticks += 1
                    follower.is_behind = not channel.confirmed.is_set() or num_ticks % REREAD_EVERY_TICKS == 0
                    yield None
            elif live.progress is not None or cursor.leads_to(live):
                cursor, follower.was_served = max(cursor, live.cursor), True
                yield live
                if live.is_end:
                    return
            elif live.cursor > cursor and cursor != gap:
                follower.is_behind, gap = True, cursor

    async def _read_log(self, job_id: str, start: str, cursor: StreamCursor) -> list[Frame]:
        """Return the log's frames after the cursor; none if Redis is away, because a later tick reads again.

        An attempt's start replaces all frames of other attempts before it.
        """
        frames: list[Frame] = []
        with suppress(TimeoutError, *AWAY):
            while True:
                async with asyncio.timeout(ANSWER_S):
                    reply = self._reader.xrange(stream_key(job_id), min=start, max="+", count=_PAGE)
                    page: Any = await self._whole(reply)
                for entry_id, fields in page:
                    start = f"({entry_id.decode()}"
                    frame = self._read_entry(job_id, entry_id, fields)
                    if frame is not None and cursor.leads_to(frame):
                        cursor = frame.cursor
                        if frame.checkpoint is not None:
                            frames.clear()
                        frames.append(frame)
                if len(page) < _PAGE:
                    break
        return frames

    def _read_entry(self, job_id: str, entry_id: bytes, fields: dict[bytes, bytes]) -> Frame | None:
        """Return the frame of a log entry; None if the entry is unreadable. Raises CannotOpen."""
        try:
            return read_frame(job_id, entry_id, fields[b"k"], fields[b"t"], seal=self._seal)
        except CannotOpen:
            raise
        except Exception as error:  # noqa: BLE001 - Redis may contain anything; readers go on without it
            self._note(HubError.LOG_ENTRY, error, job_id=job_id)
            return None

    async def _join(self, name: str, follower: _Follower) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
        channel.followers.add(follower)
        try:
            if len(channel.followers) == 1:
                await self._subscribe(name)
            async with asyncio.timeout(ANSWER_S):
                await channel.confirmed.wait()
        except TimeoutError:
            pass  # Redis is away: the log is read at every tick until the subscription is confirmed
        except BaseException:
            await self._leave(name, follower)
            raise
        return channel

    async def _leave(self, name: str, follower: _Follower) -> None:
        channel = self._channels[name]
        channel.followers.discard(follower)
        if not channel.followers:
            del self._channels[name]
            if _is_connected(self._pubsub):
                with suppress(*AWAY):
                    await self._whole(self._pubsub.unsubscribe(name))

    async def _subscribe(self, *names: str) -> None:
        """Subscribe to these channels if connected; otherwise the next connection subscribes to all followed ones."""
        if names and _is_connected(self._pubsub):
            self._unanswered.update(names)
            with suppress(*AWAY):
                await self._whole(self._pubsub.subscribe(*names))

    async def _whole(self, command: Awaitable[T]) -> T:
        """Await a command that goes on if the waiting task is cancelled.

        redis-py may swallow a cancellation and leak the connection, and a follower may leave at any moment.
        """
        task = asyncio.ensure_future(command)
        self._commands.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._commands.discard(task)
        if not task.cancelled():
            # Read the exception, so that asyncio does not report it after the waiting task has left.
            task.exception()

    async def _tick(self) -> None:
        """Wake all waiting followers together: their reads of Postgres become one query, and they need no timers."""
        while True:
            await asyncio.sleep(TICK_S)
            for channel in self._channels.values():
                for follower in channel.followers:
                    follower.tick()

    async def _run(self) -> None:
        while True:
            try:
                async with self._subscriber.pubsub() as pubsub:
                    try:
                        await self._open(pubsub)
                        await self._listen(pubsub)
                    finally:
                        self._pubsub = None
            except Exception as error:  # noqa: BLE001 - every stream waits for this task: it connects again
                self._note(HubError.CONNECTION, error, reason=str(error) if isinstance(error, AWAY) else "")
            await asyncio.sleep(RECONNECT_S)

    def _note(self, what: HubError, error: Exception, **where: str) -> None:
        """Count an error, and log it unless the same was logged a moment ago. The log never contains the message."""
        self._on_error(what)
        now = asyncio.get_running_loop().time()
        if now - self._logged_at.get(what, -_LOG_AGAIN_S) >= _LOG_AGAIN_S:
            self._logged_at[what] = now
            _log.warning("hub_error", what=what, error=type(error).__name__, **where)

    async def _open(self, pubsub: PubSub) -> None:
        for channel in self._channels.values():
            channel.confirmed.clear()
        asked = set(self._channels)
        self._unanswered = Counter(asked)
        await pubsub.subscribe(_KEEPALIVE_CHANNEL, KEYS_CHANNEL, *asked)
        self._pubsub = pubsub
        # Followers may have come and left meanwhile.
        await self._subscribe(*(self._channels.keys() - asked))
        if gone := asked - self._channels.keys():
            await pubsub.unsubscribe(*gone)

    async def _listen(self, pubsub: PubSub) -> None:
        """Deliver messages until the connection fails, or does not answer a PING."""
        is_pinged = False
        while _is_connected(pubsub):
            message = await pubsub.get_message(timeout=PING_AFTER_S)
            if message is not None:
                is_pinged = False
                self._dispatch(message)
            elif is_pinged:
                raise redis.ConnectionError("the subscription does not answer")
            else:
                is_pinged = True
                await pubsub.ping()
        raise redis.ConnectionError("the subscription was cut")

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("message", "subscribe"):
            return
        name = message["channel"].decode()
        channel = self._channels.get(name)
        if message["type"] == "subscribe":
            self._unanswered[name] -= 1
            if self._unanswered[name] <= 0:
                del self._unanswered[name]
                if channel is not None:
                    channel.confirm()
        elif name == KEYS_CHANNEL:
            self._on_key_changed(message["data"].decode(errors="replace"))
        elif channel is not None:
            frame = self._parse(name, message["data"])
            for follower in channel.followers:
                follower.deliver(frame)

    def _parse(self, name: str, data: bytes) -> Frame | None:
        """Parse a message: ``<epoch>-<seq> <kind><text>``, or nothing, which only wakes the followers.

        A frame that is unreadable or cannot be decrypted wakes them as well: they find it, or the error, in the log.
        """
        if not data:
            return None
        entry_id, _, rest = data.partition(b" ")
        try:
            return read_frame(name.removeprefix(stream_key("")), entry_id, rest[:1], rest[1:], seal=self._seal)
        except CannotOpen:
            return None
        except Exception as error:  # noqa: BLE001 - any Redis client may publish anything
            self._note(HubError.MESSAGE, error)
            return None


def _is_connected(pubsub: PubSub | None) -> TypeGuard[PubSub]:
    """Return False also if redis-py would open a new socket at the next command: only ``Hub._run`` connects."""
    return pubsub is not None and pubsub.connection is not None and pubsub.connection.is_connected
