"""Takeover of a lost attempt's log: no further appends, and its durable part is found."""

import random
from dataclasses import replace

import pytest
import redis

from headrace.store.errors import Unavailable
from headrace.store.settings import Settings
from headrace.store.streams.checkpoints import Checkpoint, Lineage, LogprobRow, num_kept
from headrace.store.streams.fencing import FencedLogs, newest, recover
from headrace.store.streams.stream_log import Frame, StreamCursor, StreamPublisher, stream_key


@pytest.fixture
def publisher(redis_client: redis.Redis) -> StreamPublisher:
    return StreamPublisher(redis_client, maxlen=1000, ttl_s=60)


@pytest.fixture
def logs(settings: Settings) -> FencedLogs:
    return FencedLogs(settings.redis_url, ttl_s=60, timeout_s=5)


def delta(epoch: int, seq: int) -> Frame:
    return Frame("a", epoch, seq, f"{epoch}é{seq} ", (epoch, seq))


def deltas(epoch: int, first: int, last: int) -> list[Frame]:
    return [delta(epoch, seq) for seq in range(first, last + 1)]


def start(checkpoint: Checkpoint, epoch: int) -> Frame:
    return Frame("a", epoch, 0, None, checkpoint=checkpoint.continued_by(epoch))


def texts(*spans: tuple[int, int, int]) -> tuple[str, ...]:
    return tuple(frame.text or "" for span in spans for frame in deltas(*span))


def test_a_sealed_log_takes_nothing_of_older_attempts_and_all_of_the_next(
    publisher: StreamPublisher, logs: FencedLogs, redis_client: redis.Redis
) -> None:
    publisher.publish(deltas(1, 1, 3))
    assert logs.fence("a", 2) == deltas(1, 1, 3)
    assert publisher.publish([delta(1, 4), Frame("a", 1, 5, None)]) == 0
    first = start(recover(deltas(1, 1, 3)), 2)
    assert publisher.publish([first, delta(2, 4)]) == 2
    assert 0 < redis_client.ttl(stream_key("a")) <= 60
    assert logs.fence("a", 3) == [*deltas(1, 1, 3), first, delta(2, 4)]
    assert publisher.publish([delta(2, 5)]) == 0


def test_the_time_of_the_first_token_is_found_and_handed_on(publisher: StreamPublisher, logs: FencedLogs) -> None:
    publisher.publish(deltas(1, 1, 2))
    found = recover(logs.fence("a", 2), job_age_s=1000.0)
    assert found.first_token_s is not None
    assert 900.0 < found.first_token_s <= 1000.0
    publisher.publish([start(found, 2), delta(2, 3)])
    later = recover(logs.fence("a", 3), job_age_s=5000.0)
    assert (later.num_deltas, later.first_token_s) == (3, found.first_token_s)


@pytest.mark.parametrize(("age_s", "first_token_s"), [(3.0, 7.0), (10.5, 0.0), (None, None)])
def test_the_first_token_came_so_long_after_the_acceptance(age_s: float | None, first_token_s: float | None) -> None:
    assert recover([replace(delta(1, 1), age_s=age_s), delta(1, 2)], job_age_s=10.0).first_token_s == first_token_s


def test_a_log_that_was_never_written_or_was_wiped_is_sealed_too(
    publisher: StreamPublisher, logs: FencedLogs, redis_client: redis.Redis
) -> None:
    assert logs.fence("a", 3) == []
    assert publisher.publish([delta(2, 9)]) == 0
    assert 0 < redis_client.ttl(stream_key("a")) <= 60
    redis_client.flushall()
    assert publisher.publish([delta(3, 9)]) == 1, "an empty Redis knows no better"
    assert logs.fence("a", 4) == [delta(3, 9)]


def test_sealing_twice_or_too_late_changes_nothing(publisher: StreamPublisher, logs: FencedLogs) -> None:
    publisher.publish(deltas(1, 1, 2))
    assert logs.fence("a", 4) == logs.fence("a", 4) == deltas(1, 1, 2)
    publisher.publish([delta(4, 1)])
    assert logs.fence("a", 4) == deltas(1, 1, 2), "one's own frames are not an earlier attempt's"
    assert logs.fence("a", 3) == deltas(1, 1, 2)
    assert publisher.publish([delta(4, 2)]) == 1


def test_a_redis_that_cannot_be_written_to_seals_nothing(logs: FencedLogs, redis_client: redis.Redis) -> None:
    redis_client.set(stream_key("a"), "not a stream")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        logs.fence("a", 2)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        FencedLogs("redis://127.0.0.1:1/0", ttl_s=1, timeout_s=5).fence("a", 2)


ONE = Checkpoint(texts((1, 1, 5)), tuple((1, seq) for seq in range(1, 6)), ((1, 0),))
LIKELY = replace(ONE, logprobs=tuple((LogprobRow(token, -1.5), LogprobRow(1, 0.0)) for token in range(5)))
HANDED_BACK = Checkpoint(ONE.deltas[:2], ONE.token_ids[:2], ((1, 0),))


@pytest.mark.parametrize(
    ("frames", "found", "lineage"),
    [
        ([], (), ()),
        (deltas(1, 1, 5), texts((1, 1, 5)), ((1, 0),)),
        (deltas(1, 2, 5), (), ()),
        ([*deltas(1, 1, 2), *deltas(1, 4, 5)], texts((1, 1, 2)), ((1, 0),)),
        ([*deltas(1, 1, 3), *deltas(2, 1, 2)], texts((2, 1, 2)), ((2, 0),)),
        ([*deltas(1, 1, 3), *deltas(2, 4, 5)], texts((1, 1, 3)), ((1, 0),)),
        ([*deltas(1, 1, 5), start(ONE, 2), *deltas(2, 6, 7)], texts((1, 1, 5), (2, 6, 7)), ((1, 0), (2, 5))),
        ([start(ONE, 2), *deltas(2, 6, 7)], texts((1, 1, 5), (2, 6, 7)), ((1, 0), (2, 5))),
        ([start(ONE, 2), *deltas(2, 7, 8)], texts((1, 1, 5)), ((1, 0), (2, 5))),
        ([*deltas(1, 1, 5), start(HANDED_BACK, 2), delta(2, 3)], texts((1, 1, 2), (2, 3, 3)), ((1, 0), (2, 2))),
        ([*deltas(1, 1, 5), start(Checkpoint(), 2)], (), ((2, 0),)),
        ([*deltas(1, 1, 5), Frame("a", 1, 6, None)], texts((1, 1, 5)), ((1, 0),)),
        ([delta(1, 1), Frame("a", 1, 2, "of an older release")], texts((1, 1, 1)), ((1, 0),)),
    ],
)
def test_only_what_follows_without_a_hole_is_certain(
    frames: list[Frame], found: tuple[str, ...], lineage: Lineage
) -> None:
    recovered = recover(frames)
    assert (recovered.deltas, recovered.lineage) == (found, lineage)
    assert recovered.token_ids == tuple(tuple(map(int, text.replace("é", " ").split())) for text in found)


def test_frames_come_back_from_the_log_as_they_went_in(publisher: StreamPublisher, logs: FencedLogs) -> None:
    frames = [
        Frame("a", 1, 1, "", (256,)),
        Frame("a", 1, 2, "d\n\x00 é🦆", (0, 31_999, 7)),
        start(ONE, 2),
        Frame("a", 2, 6, "x", (1,)),
        start(LIKELY, 3),
        Frame("a", 3, 6, "p\n\x00 é🦆", (7,), logprobs=(LogprobRow(7, -0.25, ((3, -0.125), (7, -0.25))),)),
        Frame("a", 3, 7, None),
    ]
    assert publisher.publish(frames) == 7
    assert logs.fence("a", 4) == frames
    assert [frame.cursor for frame in frames[2:]] == [
        StreamCursor(2, 5),
        StreamCursor(2, 6),
        StreamCursor(3, 5),
        StreamCursor(3, 6),
        StreamCursor(3, 7),
    ]
    assert recover(frames).logprobs == (*LIKELY.logprobs, frames[5].logprobs)
    assert recover(frames[:4]).logprobs == ()


def test_the_newest_checkpoint_counts_wherever_it_is_kept() -> None:
    later = Checkpoint(ONE.deltas[:3], ONE.token_ids[:3], ((1, 0), (2, 2)))
    assert newest(ONE, later) is newest(later, ONE) is later
    assert newest(HANDED_BACK, ONE) is ONE
    assert newest(None, ONE) is newest(ONE, Checkpoint(lineage=((7, 0),))) is ONE
    assert newest(None, None) == Checkpoint()


@pytest.mark.parametrize(
    ("lineage", "epoch", "seq", "kept"),
    [
        (((1, 0),), 1, 7, 7),
        (((1, 0), (2, 5)), 1, 7, 5),
        (((1, 0), (2, 5)), 1, 4, 4),
        (((1, 0), (2, 5)), 2, 9, 9),
        (((1, 0), (2, 5), (3, 3)), 2, 9, 3),
        (((1, 0), (3, 5)), 2, 4, 0),
        (((3, 0),), 1, 7, 0),
        ((), 1, 7, 0),
        (((1, 0), (2, 5)), 0, 0, 0),
    ],
)
def test_a_reader_keeps_what_every_later_attempt_kept(lineage: Lineage, epoch: int, seq: int, kept: int) -> None:
    assert num_kept(lineage, epoch, seq) == kept


@pytest.mark.parametrize("seed", range(30))
def test_whatever_redis_loses_no_reader_keeps_a_delta_that_is_void(
    seed: int, logs: FencedLogs, publisher: StreamPublisher, redis_client: redis.Redis
) -> None:
    """Attempts that die anywhere, readers at any cursor, a Redis that is wiped, down or loses its newest entries.

    Each reader keeps ``num_kept`` deltas and continues. Wrongly joined texts would show as a difference.
    """
    dice = random.Random(seed)
    stored: Checkpoint | None = None
    readers: list[tuple[int, tuple[str, ...]]] = []
    for epoch in range(1, 8):
        is_away = epoch > 1 and dice.random() < 0.3
        recovered = None if is_away or epoch == 1 else recover(logs.fence("a", epoch))
        now = newest(stored, recovered).continued_by(epoch)
        sent = [Frame("a", epoch, 0, None, checkpoint=now)] if epoch > 1 else []
        said = list(now.deltas)
        for seq in range(len(said) + 1, len(said) + 1 + dice.randrange(6)):
            said.append(f"{epoch}/{seq}")
            sent.append(Frame("a", epoch, seq, said[-1], (epoch, seq)))
        readers += [(epoch, tuple(said[:seq])) for seq in range(len(now.deltas), len(said) + 1)]
        if not is_away:
            publisher.publish([frame for frame in sent if dice.random() < 0.9])
        if dice.random() < 0.2:
            redis_client.flushall()
        elif dice.random() < 0.2:
            for entry_id, _ in redis_client.xrevrange(stream_key("a"), count=dice.randrange(1, 5)):
                redis_client.xdel(stream_key("a"), entry_id)
        whole = Checkpoint(tuple(said), tuple((0, seq) for seq, _ in enumerate(said)), now.lineage)
        if dice.random() < 0.3:
            stored = whole if said else stored
        for reader_epoch, has in readers:
            kept = num_kept(now.lineage, reader_epoch, len(has))
            assert has[:kept] == whole.deltas[:kept], (epoch, reader_epoch, has)
