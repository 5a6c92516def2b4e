"""The fan-out hub against a real server: late joins, cuts, wipes, holes, slow and vanished readers."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from typing import Any

import pytest
import redis
from redis.asyncio.client import PubSub
from structlog.testing import capture_logs

from headrace.store.redis.key_notices import KEYS_CHANNEL
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint
from headrace.store.streams.hub import TICK_S, Hub, HubError
from headrace.store.streams.stream_log import Frame, StreamCursor, StreamPublisher, stream_key
from tests.processes import until

PATIENCE_S = 60.0
NAME = "hub-of-test"


@pytest.fixture(autouse=True)
def _slow_is_not_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub gives up a log that is read too slowly, and its caller reads Postgres: here the machine may be slow."""
    monkeypatch.setattr("headrace.store.streams.hub.ANSWER_S", PATIENCE_S / 2)
    monkeypatch.setattr("headrace.store.redis.connection.ASYNC_TIMEOUT_S", PATIENCE_S / 2)


@pytest.fixture
async def hub(settings: Settings) -> AsyncIterator[Hub]:
    hub = Hub(named(settings.redis_url))
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
def publisher(redis_client: redis.Redis) -> StreamPublisher:
    return StreamPublisher(redis_client, maxlen=10_000, ttl_s=60)


async def collect(hub: Hub, job_id: str, after: StreamCursor | None = None, *, limit: int | None = None) -> list[Frame]:
    """Read a stream to its end, or ``limit`` frames of it."""
    frames: list[Frame] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow(job_id, after)) as stream:
        async for frame in stream:
            if frame is not None:
                frames.append(frame)
            if limit is not None and len(frames) >= limit:
                break
    return frames


def answer(job_id: str, epoch: int, length: int, start: int = 1) -> list[Frame]:
    """Frames ``start`` to ``length``, and the end."""
    deltas = [Frame(job_id, epoch, seq, f"w{seq} ") for seq in range(start, length + 1)]
    return [*deltas, Frame(job_id, epoch, length + 1, None)]


def named(url: str) -> str:
    """The address by which a hub's connections bear a name: other tests' may still be closing."""
    return f"{url}{'&' if '?' in url else '?'}client_name={NAME}"


def subscriptions(client: redis.Redis) -> list[dict[str, Any]]:
    """The connections on which a hub of this test listens."""
    return [each for each in client.client_list(_type="pubsub") if each["name"] == NAME]


def cut(client: redis.Redis) -> int:
    """Cut them; return how many there were."""
    return sum(int(client.client_kill_filter(_id=each["id"])) for each in subscriptions(client))


def subscribed_channels(client: redis.Redis) -> set[str]:
    """Return those of jobs: the hub has others all the time."""
    return {name for each in client.pubsub_channels() if (name := each.decode()).startswith(stream_key(""))} - {
        "headrace:stream:keepalive"
    }


async def test_a_finished_stream_is_replayed(hub: Hub, publisher: StreamPublisher) -> None:
    publisher.publish(answer("a", 1, 1500))  # three pages of the log
    assert await collect(hub, "a") == answer("a", 1, 1500)


async def test_a_stream_is_resumed_at_every_position(hub: Hub, publisher: StreamPublisher) -> None:
    publisher.publish(answer("a", 1, 30))
    for seq in range(31):
        assert await collect(hub, "a", StreamCursor(1, seq)) == answer("a", 1, 30)[seq:]


async def test_hundreds_follow_over_one_connection_with_late_joins_drops_and_a_cut(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    dice = random.Random(7)
    jobs = [f"job{index}" for index in range(16)]
    length = 80
    frames = {job_id: answer(job_id, 1, length) for job_id in jobs}

    async def client(job_id: str, delay_s: float, drop_after: int | None) -> list[Frame]:
        await asyncio.sleep(delay_s)
        got = await collect(hub, job_id, limit=drop_after)
        while not got[-1].is_end:
            got += await collect(hub, job_id, got[-1].cursor, limit=drop_after)
        return got

    clients = [(dice.choice(jobs), dice.random(), dice.choice([None, None, 9, 31])) for _ in range(300)]
    await until(lambda: subscriptions(redis_client), "the hub is connected")
    reading = asyncio.gather(*(client(*each) for each in clients))
    for step in range(length + 1):
        await asyncio.to_thread(publisher.publish, [frames[job_id][step] for job_id in jobs])
        if step == length // 3:
            assert cut(redis_client) == 1
        await asyncio.sleep(0.01)

    for (job_id, *_), got in zip(clients, await reading, strict=True):
        assert got == frames[job_id]
    await until(lambda: subscriptions(redis_client), "the hub is connected again")
    assert len(subscriptions(redis_client)) == 1


@pytest.mark.parametrize(
    "junk", [b"not json", b"{}", b"1-x dno position", b"1-2 p[1]", b"\xff\xfe", b"1-2 d\xff", b"2-0 s[]", b"1-2 D{}"]
)
async def test_what_is_no_frame_is_passed_over(
    settings: Settings, publisher: StreamPublisher, redis_client: redis.Redis, junk: bytes
) -> None:
    errors: list[HubError] = []
    hub = Hub(named(settings.redis_url), on_error=errors.append)
    await hub.start()
    frames = answer("a", 1, 3)
    reading = asyncio.create_task(collect(hub, "a"))
    await until(lambda: subscribed_channels(redis_client))
    await asyncio.to_thread(publisher.publish, frames[:1])
    redis_client.publish(stream_key("a"), junk)
    redis_client.publish(KEYS_CHANNEL, junk)
    await asyncio.to_thread(publisher.publish, frames[1:])
    assert await reading == frames
    # The next who follows finds the hub at work, and so does one who meets it in the log.
    redis_client.xadd(stream_key("b"), {"k": "d", "x": "y"}, id="1-1")
    redis_client.xadd(stream_key("b"), {"k": "p", "t": "{"}, id="1-2")
    assert await collect(hub, "a") == frames
    reading = asyncio.create_task(collect(hub, "b"))
    await until(lambda: subscribed_channels(redis_client))
    await asyncio.to_thread(publisher.publish, [Frame("b", 1, 3, None)])
    assert await reading == [Frame("b", 1, 3, None)]
    assert hub.is_connected
    assert {*errors} - {HubError.MESSAGE} == {HubError.LOG_ENTRY}
    await hub.stop()


async def test_a_failure_of_any_kind_is_followed_by_a_new_connection(
    settings: Settings, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("a defect")

    errors: list[HubError] = []
    hub = Hub(named(settings.redis_url), on_key_changed=fail, on_error=errors.append)
    await hub.start()
    await until(lambda: hub.is_connected)
    redis_client.publish(KEYS_CHANNEL, "key_0")
    await until(lambda: errors == [HubError.CONNECTION] and hub.is_connected)
    reading = asyncio.create_task(collect(hub, "a"))
    await until(lambda: subscribed_channels(redis_client))
    await asyncio.to_thread(publisher.publish, answer("a", 1, 3))
    assert await reading == answer("a", 1, 3)
    await hub.stop()


async def test_a_silent_stream_yields_none_every_second(hub: Hub) -> None:
    async with asyncio.timeout(20), aclosing(hub.follow("a")) as stream:
        assert [await anext(stream), await anext(stream)] == [None, None]


async def test_those_who_wait_in_silence_are_woken_together(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what they then ask of Postgres is one query."""
    is_time, sleep = asyncio.Event(), asyncio.sleep

    async def sleep_until_told(seconds: float) -> None:
        await (is_time.wait() if seconds == TICK_S else sleep(seconds))
        is_time.clear()

    monkeypatch.setattr(asyncio, "sleep", sleep_until_told)
    hub, woken = Hub(named(settings.redis_url)), set()

    async def follow(index: int) -> None:
        async with aclosing(hub.follow(f"job{index}")) as stream:
            async for _ in stream:
                woken.add(index)

    await hub.start()
    following = [asyncio.create_task(follow(index)) for index in range(10)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(woken) < 10:  # those that still read the log are not woken by this tick
                await sleep(0.01)
                woken.clear()
                is_time.set()
                for _ in range(10):  # turns of the loop, in which no other timer wakes a follower
                    await sleep(0)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await hub.stop()


async def test_a_nudge_yields_none_at_once(
    settings: Settings, publisher: StreamPublisher, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.store.streams.hub.TICK_S", 3600.0)  # nothing else wakes a follower
    hub = Hub(named(settings.redis_url))
    await hub.start()
    try:
        async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await until(lambda: stream_key("a") in subscribed_channels(redis_client))
            publisher.nudge(["a", "b"])
            assert await waiting is None
    finally:
        await hub.stop()


async def test_a_new_attempt_follows_the_old_one_with_its_own_numbers(hub: Hub, publisher: StreamPublisher) -> None:
    publisher.publish(answer("a", 1, 5)[:3])
    reading = asyncio.create_task(collect(hub, "a"))
    await until(lambda: hub.num_channels)
    publisher.publish(answer("a", 2, 4))
    # A zombie of the first attempt goes on; Redis refuses it.
    assert publisher.publish(answer("a", 1, 5)[3:]) == 0
    assert await reading == answer("a", 1, 5)[:3] + answer("a", 2, 4)


async def test_a_zombie_after_a_wipe_is_not_mixed_in(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    frames = answer("a", 2, 4)
    async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as stream:
        publisher.publish(frames[:2])
        seen = [await anext(stream), await anext(stream)]
        redis_client.flushall()
        assert publisher.publish([Frame("a", 1, 3, "zombie")]) == 1  # an empty Redis knows no better
        publisher.publish(frames[2:])
        seen += [frame async for frame in stream if frame is not None]
    assert seen == frames


async def test_a_wipe_does_not_disturb_those_who_are_up_to_date(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    frames = answer("a", 1, 40)
    async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as stream:
        publisher.publish(frames[:20])
        seen = [await anext(stream) for _ in range(20)]
        redis_client.flushall()
        publisher.publish(frames[20:])
        seen += [frame async for frame in stream if frame is not None]
    assert seen == frames


async def test_what_a_wipe_took_is_never_skipped(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    frames = answer("a", 1, 40)
    publisher.publish(frames[:20])
    redis_client.flushall()
    async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as stream:
        publisher.publish(frames[20:30])
        assert await anext(stream) is None
        publisher.publish(frames[30:40])
        assert await anext(stream) is None
        publisher.publish(frames[40:])
        # The end comes, so that the caller replays from Postgres.
        assert [frame async for frame in stream if frame is not None] == frames[40:]


async def test_a_hole_is_filled_from_the_log_at_once(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the next look into the log, which comes every few seconds in case that something was missed."""
    monkeypatch.setattr("headrace.store.streams.hub.REREAD_EVERY_TICKS", 1_000_000)
    frames = answer("a", 1, 3)
    reading = asyncio.create_task(collect(hub, "a"))
    await until(lambda: stream_key("a") in subscribed_channels(redis_client))
    await asyncio.to_thread(publisher.publish, frames[:1])
    # The second frame reaches the log, and its message is lost.
    redis_client.xadd(stream_key("a"), {"k": "d", "t": "w2 ", "i": ""}, id="1-2")
    await asyncio.to_thread(publisher.publish, frames[2:])
    assert await reading == frames


async def test_a_hole_does_not_make_every_frame_read_the_log(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    reading = asyncio.create_task(collect(hub, "a"))
    await until(lambda: subscribed_channels(redis_client))
    before = redis_client.info("commandstats").get("cmdstat_xrange", {"calls": 0})["calls"]
    for seq in range(2, 202):
        # Each on its own, so that the reader meets every one of them live.
        await asyncio.to_thread(publisher.publish, [Frame("a", 1, seq, "x")])
    publisher.publish([Frame("a", 1, 202, None)])
    assert await reading == [Frame("a", 1, 202, None)]
    calls = redis_client.info("commandstats")["cmdstat_xrange"]["calls"] - before
    assert calls < 20


async def test_a_slow_reader_misses_nothing_and_delays_nobody(hub: Hub, publisher: StreamPublisher) -> None:
    frames = answer("a", 1, 2000)
    async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as slow:
        publisher.publish(frames[:1])
        first = await anext(slow)
        # It now reads nothing while far more than its inbox holds goes by.
        for start in range(1, len(frames), 100):
            publisher.publish(frames[start : start + 100])
        assert await collect(hub, "a") == frames
        # A None among them is a second in which the machine had no time for the reader.
        assert [first, *[frame async for frame in slow if frame]] == frames


@pytest.mark.full
async def test_two_hundred_abandoned_followers_leave_no_subscription(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    ids = [f"job{index}" for index in range(200)]
    # One in two is cancelled while waiting, the others just stop reading.
    publisher.publish([Frame(job_id, 1, 1, "x") for job_id in ids[::2]])

    async def vanish(job_id: str) -> None:
        # Not at a None, which a busy machine may bring before all have come.
        async for frame in hub.follow(job_id):
            if frame is not None:
                return

    readers = [asyncio.create_task(vanish(job_id)) for job_id in ids]
    await until(lambda: hub.num_channels >= 100 and len(subscribed_channels(redis_client)) >= 100)
    for reader in readers[1::2]:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await until(lambda: not hub.num_channels and not subscribed_channels(redis_client))
    assert len(subscriptions(redis_client)) == 1


async def test_leaving_and_coming_back_at_once_loses_nothing(hub: Hub, publisher: StreamPublisher) -> None:
    frames = answer("a", 1, 200)

    async def feed() -> None:
        for frame in frames:
            await asyncio.to_thread(publisher.publish, [frame])

    feeding = asyncio.create_task(feed())
    got: list[Frame] = []
    while not got or not got[-1].is_end:
        got += await collect(hub, "a", got[-1].cursor if got else None, limit=3)
    await feeding
    assert got == frames


async def test_what_was_published_during_a_cut_comes_as_soon_as_it_is_mended(
    settings: Settings, publisher: StreamPublisher, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.store.streams.hub.TICK_S", 3600.0)  # nothing else wakes a follower
    monkeypatch.setattr("headrace.store.streams.hub.RECONNECT_S", 0.3)
    frames = answer("a", 1, 3)
    hub = Hub(named(settings.redis_url))
    await hub.start()
    try:
        async with asyncio.timeout(PATIENCE_S), aclosing(hub.follow("a")) as stream:
            publisher.publish(frames[:1])
            assert await anext(stream) == frames[0]
            cut(redis_client)
            await until(lambda: not subscriptions(redis_client))
            publisher.publish(frames[1:])
            assert [frame async for frame in stream] == frames[1:]
    finally:
        await hub.stop()


async def test_a_silent_connection_is_checked_and_kept(
    settings: Settings, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_message, num_silences = PubSub.get_message, 0

    async def wait_longer_for_a_pong(pubsub: PubSub, **options: float) -> Any:
        """Silence is short, but a PING that follows it may be answered late, as on a busy machine."""
        nonlocal num_silences
        message = await get_message(pubsub, **options)
        num_silences += message is None
        monkeypatch.setattr("headrace.store.streams.hub.PING_AFTER_S", PATIENCE_S if message is None else 0.1)
        return message

    monkeypatch.setattr("headrace.store.streams.hub.PING_AFTER_S", 0.1)
    monkeypatch.setattr(PubSub, "get_message", wait_longer_for_a_pong)
    errors: list[HubError] = []
    hub = Hub(named(settings.redis_url), on_error=errors.append)
    await hub.start()
    try:
        await until(lambda: subscriptions(redis_client))
        (before,) = subscriptions(redis_client)
        await until(lambda: num_silences >= 3 or errors, "three PINGs were sent")
        (after,) = subscriptions(redis_client)
        assert (after["id"], errors) == (before["id"], [])
    finally:
        await hub.stop()


async def test_a_connection_that_answers_nothing_is_replaced(
    settings: Settings, redis_client: redis.Redis, publisher: StreamPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.store.streams.hub.PING_AFTER_S", 0.1)
    errors: list[HubError] = []
    hub = Hub(named(settings.redis_url), on_error=errors.append)
    await hub.start()
    try:
        await until(lambda: subscriptions(redis_client))
        before = {client["id"] for client in subscriptions(redis_client)}

        def is_given_up() -> bool:
            # For half a second the server reads no command and sends no message; then it serves all clients.
            redis_client.client_pause(500)
            return HubError.CONNECTION in errors

        await until(is_given_up, "the hub has noticed the silence")
        await until(lambda: {client["id"] for client in subscriptions(redis_client)} - before, "it is connected again")
        publisher.publish(answer("a", 1, 3))
        assert await collect(hub, "a") == answer("a", 1, 3)
    finally:
        await hub.stop()


async def test_followers_come_while_redis_is_away_and_are_served_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.store.streams.hub.ANSWER_S", 0.1)
    away = Hub("redis://127.0.0.1:1/0")
    await away.start()
    try:
        async with asyncio.timeout(PATIENCE_S), aclosing(away.follow("a")) as stream:
            assert await anext(stream) is None
    finally:
        await away.stop()
    assert away.num_channels == 0


async def test_a_connection_that_is_cut_again_and_again_costs_no_frame(
    hub: Hub, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    frames = answer("a", 1, 150)
    reading = [asyncio.create_task(collect(hub, "a")) for _ in range(5)]
    for index, frame in zip(count(), frames, strict=False):
        await asyncio.to_thread(publisher.publish, [frame])
        if index % 15 == 0:
            cut(redis_client)
        await asyncio.sleep(0.004)
    assert all(got == frames for got in await asyncio.gather(*reading))
    await until(lambda: not subscribed_channels(redis_client))
    assert stream_key("a") not in subscribed_channels(redis_client)


async def test_a_follower_can_leave_at_any_moment(hub: Hub) -> None:
    async def follow() -> None:
        async with aclosing(hub.follow("job_x")) as frames:
            async for _ in frames:
                pass

    for microseconds in range(0, 4000, 40):
        follower = asyncio.create_task(follow())
        await asyncio.sleep(microseconds / 1e6)
        follower.cancel()
        _, still_there = await asyncio.wait({follower}, timeout=PATIENCE_S)
        assert not still_there, "redis-py swallowed the cancellation"
    assert hub.num_channels == 0


async def test_an_error_that_comes_again_and_again_is_counted_and_logged_once(
    settings: Settings, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    errors: list[HubError] = []
    hub = Hub(named(settings.redis_url), on_error=errors.append)
    await hub.start()
    try:
        with capture_logs() as logs:
            reading = asyncio.create_task(collect(hub, "a"))
            await until(lambda: subscribed_channels(redis_client) == {stream_key("a")}, "the hub listens")
            for _ in range(3):
                redis_client.publish(stream_key("a"), b"1-x secret")
            publisher.publish(answer("a", 1, 1))
            assert await reading == answer("a", 1, 1)
    finally:
        await hub.stop()
    assert errors == [HubError.MESSAGE] * 3
    assert logs == [{"event": "hub_error", "log_level": "warning", "what": HubError.MESSAGE, "error": "ValueError"}]


async def test_a_start_in_the_log_replaces_what_came_before_it_also_for_a_reader_of_a_part(
    hub: Hub, publisher: StreamPublisher
) -> None:
    begun = [Frame("a", 1, seq, f"w{seq} ", (seq,)) for seq in (1, 2, 3)]
    known = Checkpoint(("w1 ", "w2 ", "w3 "), ((1,), (2,), (3,)), ((1, 0),))
    again = Frame("a", 2, 0, None, checkpoint=known.continued_by(2))
    rest = [Frame("a", 2, 4, "w4 "), Frame("a", 2, 5, None)]
    publisher.publish([*begun, again, *rest])
    assert await collect(hub, "a") == [again, *rest]
    assert await collect(hub, "a", StreamCursor(2, 1)) == [again, *rest]
    assert await collect(hub, "a", StreamCursor(2, 3)) == rest
