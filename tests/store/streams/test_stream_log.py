"""The log and the channel: what Redis accepts, what it refuses, how long it keeps it."""

import queue
import threading

import pytest
import redis

from headrace.store.errors import Unavailable
from headrace.store.redis.connection import connect
from headrace.store.seal import PLAIN, Seal
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import (
    CANCEL_CHANNEL,
    CancelListener,
    Frame,
    StreamCursor,
    StreamPublisher,
    forget_generation,
    publish_cancel,
    start_generation,
    stream_key,
)
from tests.sealing import TurnedSeal


@pytest.fixture
def publisher(redis_client: redis.Redis) -> StreamPublisher:
    return StreamPublisher(redis_client, maxlen=1000, ttl_s=60)


def log(client: redis.Redis, job_id: str) -> list[tuple[str, str]]:
    return [(entry_id.decode(), fields[b"t"].decode()) for entry_id, fields in client.xrange(stream_key(job_id))]


def test_frames_of_many_jobs_are_logged_and_announced_by_one_call(
    publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    with redis_client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(stream_key("a"), stream_key("b"))
        for _ in range(2):
            assert listener.get_message(timeout=60) is None  # the confirmations
        frames = [Frame("a", 1, 1, "x y"), Frame("b", 3, 1, "é\n"), Frame("a", 1, 2, None)]

        redis_client.config_resetstat()
        assert publisher.publish(frames) == 3
        stats = redis_client.info("commandstats")

        messages = [listener.get_message(timeout=60) for _ in range(3)]
    assert sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats) <= 2
    assert [message and message["data"].decode() for message in messages] == ["1-1 dx y", "3-1 dé\n", "1-2 e"]
    assert log(redis_client, "a") == [("1-1", "x y"), ("1-2", "")]
    assert log(redis_client, "b") == [("3-1", "é\n")]


def test_a_stale_epoch_is_neither_kept_nor_announced(publisher: StreamPublisher, redis_client: redis.Redis) -> None:
    publisher.publish([Frame("a", 2, 1, "new")])
    with redis_client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(stream_key("a"))
        assert listener.get_message(timeout=60) is None
        assert publisher.publish([Frame("a", 1, 7, "old"), Frame("a", 1, 8, None), Frame("a", 2, 2, "newer")]) == 1
        message = listener.get_message(timeout=60)
    assert message is not None
    assert message["data"] == b"2-2 dnewer"
    assert log(redis_client, "a") == [("2-1", "new"), ("2-2", "newer")]


def test_a_repeated_frame_is_refused(publisher: StreamPublisher, redis_client: redis.Redis) -> None:
    assert publisher.publish([Frame("a", 1, 1, "x")]) == 1
    assert publisher.publish([Frame("a", 1, 1, "x"), Frame("a", 1, 2, "y")]) == 1
    assert log(redis_client, "a") == [("1-1", "x"), ("1-2", "y")]


def test_the_log_is_capped_and_expires(redis_client: redis.Redis) -> None:
    publisher = StreamPublisher(redis_client, maxlen=100, ttl_s=60)
    publisher.publish([Frame("a", 1, seq, "x") for seq in range(1, 1001)])
    # "~" trims whole nodes of a hundred entries.
    assert redis_client.xlen(stream_key("a")) <= 200
    assert 0 < redis_client.ttl(stream_key("a")) <= 60


@pytest.mark.parametrize("seal", [PLAIN, TurnedSeal("k1")], ids=["plain", "sealed"])
def test_the_log_goes_a_minute_after_its_jobs_end(redis_client: redis.Redis, seal: Seal) -> None:
    publisher = StreamPublisher(redis_client, maxlen=100, ttl_s=600, seal=seal)
    publisher.publish([Frame(job, 1, seq, "e") for job in ("ended", "runs", "expired") for seq in (1, 2)])
    publisher.publish([Frame("ended", 1, 3, None)])
    publisher.nudge(["expired"])
    lives = {job: redis_client.ttl(stream_key(job)) for job in ("ended", "runs", "expired")}
    assert lives["runs"] > 500
    assert 0 < lives["ended"] <= 60
    assert 0 < lives["expired"] <= 60


def test_nothing_to_publish_asks_nothing_of_redis() -> None:
    with connect("redis://127.0.0.1:1/0") as nowhere:
        assert StreamPublisher(nowhere, maxlen=10, ttl_s=1).publish([]) == 0


def test_a_failure_that_is_not_staleness_is_told(publisher: StreamPublisher, redis_client: redis.Redis) -> None:
    redis_client.set(stream_key("a"), "not a stream")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        publisher.publish([Frame("a", 1, 1, "x")])


def test_a_redis_that_is_away_is_told_in_one_line() -> None:
    with connect("redis://127.0.0.1:1/0") as nowhere, pytest.raises(Unavailable) as caught:
        StreamPublisher(nowhere, maxlen=10, ttl_s=1).publish([Frame("a", 1, 1, "x")])
    assert "127.0.0.1:1" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "-",
        "1-",
        "-1",
        "1-2-3",
        "-1-2",
        "+1-2",
        " 1-2",
        "1-2 ",
        "1_0-2",
        "1-٣",
        "a-b",
        "1.0-2",
        "1" * 40 + "-1",
    ],
)
def test_a_cursor_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r" 1-42$"):
        StreamCursor.parse(text)


def test_cursors_are_read_written_and_ordered() -> None:
    assert str(StreamCursor.parse("12-345")) == "12-345"
    assert StreamCursor(1, 99) < StreamCursor(2, 1) < StreamCursor(2, 2)


@pytest.mark.parametrize(
    ("cursor", "frame", "leads"),
    [
        (StreamCursor(), Frame("a", 1, 1, "x"), True),
        (StreamCursor(), Frame("a", 3, 1, "x"), True),
        (StreamCursor(), Frame("a", 1, 2, "x"), False),
        (StreamCursor(1, 4), Frame("a", 1, 5, "x"), True),
        (StreamCursor(1, 4), Frame("a", 1, 4, "x"), False),
        (StreamCursor(1, 4), Frame("a", 1, 6, "x"), False),
        (StreamCursor(1, 4), Frame("a", 2, 1, "x"), True),
        (StreamCursor(1, 4), Frame("a", 2, 2, "x"), False),
        (StreamCursor(2, 4), Frame("a", 1, 5, "x"), False),
        (StreamCursor(1, 4), Frame("a", 1, 9, None), True),
        (StreamCursor(1, 4), Frame("a", 2, 9, None), True),
        (StreamCursor(2, 4), Frame("a", 1, 9, None), False),
    ],
)
def test_a_cursor_leads_to_the_next_frame_a_newer_attempt_or_an_end(
    cursor: StreamCursor, frame: Frame, leads: bool
) -> None:
    assert cursor.leads_to(frame) is leads


def test_a_new_or_wiped_redis_is_noticed_once(redis_client: redis.Redis) -> None:
    assert start_generation(redis_client)
    assert not start_generation(redis_client)
    redis_client.flushdb()
    assert start_generation(redis_client)
    forget_generation(redis_client)
    assert start_generation(redis_client)


def test_a_cancel_reaches_a_listener_also_after_its_connection_was_cut(
    settings: Settings, redis_client: redis.Redis
) -> None:
    heard: queue.Queue[str] = queue.Queue()
    listener = CancelListener(settings.redis_url, heard.put)
    listener.start()
    try:
        assert listener.subscribed.wait(5)
        redis_client.publish(CANCEL_CHANNEL, b"\xff\xfe")
        publish_cancel(redis_client, "job_1")
        assert [heard.get(timeout=60) for _ in range(2)] == ["\ufffd\ufffd", "job_1"]

        listener.subscribed.clear()
        assert redis_client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        assert listener.subscribed.wait(10)
        publish_cancel(redis_client, "job_2")
        assert heard.get(timeout=60) == "job_2"
    finally:
        listener.stop()
    assert "cancel-listener" not in {thread.name for thread in threading.enumerate()}
