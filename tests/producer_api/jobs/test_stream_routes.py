"""The native stream: complete and in order, from any cursor, and never ending without its last event."""

import threading

import httpx2
import pytest
import redis

from headrace.store.db.database import Database
from headrace.store.errors import Unavailable
from headrace.store.jobs.jobs import Job
from tests.cases import some_of
from tests.processes import wait_for
from tests.producer_api.calling import LiveStream, Sse, error_of, parse, split, streaming, submit
from tests.producer_api.scripted_worker import ScriptedWorker
from tests.producer_api.serving import ApiServer


def _ids(body: bytes) -> list[str]:
    return [event.id for event in parse(body)]


def _read(api: httpx2.Client, job_id: str, last_event_id: str | None = None) -> bytes:
    with streaming(api, job_id, last_event_id) as stream:
        return b"".join(split(stream.rest()))


def test_a_stream_follows_a_job_from_start_to_end(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    with streaming(api, job_id) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert stream.next().name == "job.queued"
        attempt = worker.claim(job_id)
        worker.say(attempt, "Hel")
        assert (stream.next().name, stream.next().data) == ("job.started", {"text": "Hel"})
        worker.say(attempt, "lo ", "wörld\n")
        assert [stream.next().data["text"] for _ in range(2)] == ["lo ", "wörld\n"]
        worker.succeed(attempt)
        body = stream.rest()
    events = parse(body)
    assert [event.id for event in events] == ["0-0", "1-0", "1-1", "1-2", "1-3", "1-4"]
    assert events[-1].name == "job.succeeded"
    assert events[-1].data == api.get(f"/v1/jobs/{job_id}").json()
    assert events[-1].data["output"]["text"] == "Hello wörld\n"
    assert events[-1].data["last_event_id"] == events[-1].id


@pytest.mark.usefixtures("no_ticks")
def test_a_delta_arrives_at_once(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(attempt, "first")
        stream.until("job.delta")
        worker.say(attempt, "second")
        assert stream.next().data == {"text": "second"}
        worker.succeed(attempt)
        stream.rest()


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["redis remembers", "redis was wiped"])
def test_a_replay_from_every_cursor_is_the_rest_byte_for_byte(
    api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis, is_forgotten: bool
) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        stream.until("job.started")
        worker.say(attempt, *[f"piece {number} " for number in range(20)])
        worker.succeed(attempt)
        live = b"".join(split(stream.rest()))
    if is_forgotten:
        redis_client.flushall()
    events = split(live)
    assert len(events) == 23
    assert _read(api, job_id) == live
    for index, cursor in enumerate(_ids(live)[:-1], 1):
        assert _read(api, job_id, cursor) == b"".join(events[index:])
    by_query = api.get(f"/v1/jobs/{job_id}/events", params={"starting_after": "1-7"})
    assert by_query.content == b"".join(events[9:])


def test_a_reader_that_has_everything_is_told_so(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    worker.say(attempt, "x")
    worker.succeed(attempt)
    last = _ids(_read(api, job_id))[-1]
    response = api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    assert (response.status_code, response.content) == (204, b"")


def test_a_reader_that_was_cut_off_comes_back_while_the_job_runs(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    worker.say(attempt, "a", "b", "c")
    with streaming(api, job_id) as stream:
        cut_at = stream.until("job.delta")[-1].id
    with streaming(api, job_id, cut_at) as stream:
        assert [stream.next().data["text"] for _ in range(2)] == ["b", "c"]
        worker.say(attempt, "d")
        worker.succeed(attempt)
        assert _ids(stream.rest()) == ["1-2", "1-3", "1-4", "1-5"]


def test_what_redis_lost_comes_from_postgres(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(attempt, "a")
        stream.until("job.delta")
        worker.whisper(attempt, "b", "c")
        worker.say(attempt, "d")
        worker.succeed(attempt)
        events = parse(stream.rest())
    assert [event.data["text"] for event in events if event.name == "job.delta"] == ["a", "b", "c", "d"]
    assert [event.id for event in events] == ["0-0", "1-0", "1-1", "1-2", "1-3", "1-4", "1-5"]


def test_a_wipe_in_the_middle_loses_nothing(
    api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(attempt, "a", "b")
        stream.until("job.delta")
        redis_client.flushall()
        worker.say(attempt, "c")
        redis_client.flushall()
        worker.whisper(attempt, "d")
        worker.succeed(attempt, announce=False)
        events = parse(stream.rest())
    assert "".join(event.data["text"] for event in events if event.name == "job.delta") == "abcd"
    assert events[-1].name == "job.succeeded"


def test_a_worker_that_is_lost_goes_unnoticed(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    first = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(first, "a", "b")
        stream.until("job.delta")
        worker.hand_back(first, charge=True)
        second = worker.go_on(first, 2)
        worker.say(first, "from the grave")
        worker.say(second, "c")
        # An event id names the attempt of the text, so it must arrive before the third attempt.
        assert [stream.next().id for _ in range(2)] == ["1-2", "2-3"]
        worker.hand_back(second, charge=True)
        third = worker.go_on(second, 3)
        worker.say(third, "d")
        worker.succeed(third)
        events = parse(stream.rest())
    assert [event.id for event in events] == ["0-0", "1-0", "1-1", "1-2", "2-3", "3-4", "3-5"]
    assert [event.data["text"] for event in events if event.name == "job.delta"] == ["a", "b", "c", "d"]


def test_what_the_next_worker_does_not_know_is_taken_back(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    first = worker.claim(job_id)
    with streaming(api, job_id) as ahead, streaming(api, job_id) as behind:
        worker.say(first, "a", "b", "c")
        assert [event.id for event in (ahead.until("job.delta"), ahead.next(), ahead.next())[1:]] == ["1-2", "1-3"]
        behind.until("job.delta")
        worker.hand_back(first, charge=True)
        second = worker.go_on(first, 2)
        restarted = ahead.until("job.restarted")[-1]
        worker.say(second, "C")
        worker.succeed(second)
        rests = [parse(stream.rest()) for stream in (ahead, behind)]
    assert (restarted.id, restarted.data) == ("2-2", {"attempt": 2, "kept": 2, "text": "ab"})
    assert [event.id for event in rests[0]][-3:] == ["2-2", "2-3", "2-4"]
    assert _final_text(rests[0]) == _final_text(rests[1]) == "abC"


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["redis remembers", "redis was wiped"])
def test_a_cursor_of_any_attempt_leads_to_the_same_text(
    api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis, is_forgotten: bool
) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    worker.say(attempt, *"abcde")
    seen = {f"1-{seq}": "abcde"[:seq] for seq in range(6)}
    for kept, more in ((4, "XY"), (6, "Z"), (2, "!!!!")):
        worker.hand_back(attempt)
        attempt = worker.go_on(attempt, kept)
        worker.say(attempt, *more)
        said = "".join(attempt.said)
        seen |= {f"{attempt.claim.epoch}-{seq}": said[:seq] for seq in range(len(said) + 1)}
        for cursor, text in seen.items():
            with streaming(api, job_id, cursor) as stream:
                assert _text_until(stream, text, said), (cursor, said)
    worker.succeed(attempt)
    if is_forgotten:
        redis_client.flushall()
    for cursor, text in seen.items():
        events = parse(_read(api, job_id, cursor))
        assert _final_text(events, text) == "ab!!!!", cursor
        restarts = [event for event in events if event.name == "job.restarted"]
        assert len(restarts) == (not "ab!!!!".startswith(text)), cursor
        if events[:-1]:
            assert [event.id for event in events] == [f"4-{seq}" for seq in range(7 - len(events) + 1, 8)], cursor


def test_a_new_reader_of_a_continued_job_gets_all_of_it(
    api: httpx2.Client, worker: ScriptedWorker, redis_client: redis.Redis
) -> None:
    job_id = submit(api)
    first = worker.claim(job_id)
    worker.say(first, "a", "b")
    worker.hand_back(first)
    second = worker.go_on(first, 2)
    worker.say(second, "c")
    with streaming(api, job_id) as stream:
        while stream.next().data.get("text") != "c":
            pass
        worker.succeed(second)
        assert [event.id for event in parse(stream.rest())] == ["0-0", "2-0", "2-1", "2-2", "2-3", "2-4"]


def test_a_start_that_redis_never_got_is_made_up_for_at_the_end(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    first = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(first, "a", "b")
        stream.until("job.delta")
        stream.next()
        worker.hand_back(first)
        second = worker.go_on(first, 1, announce=False)
        worker.say(second, "B", "c")
        worker.succeed(second)
        events = parse(stream.rest())
    assert [event.id for event in events] == ["0-0", "1-0", "1-1", "1-2", "2-1", "2-2", "2-3", "2-4"]
    assert _final_text(events) == "aBc"


def _final_text(events: list[Sse], text: str = "") -> str:
    """What a reader has who starts with ``text``."""
    for event in events:
        if event.name == "job.restarted":
            text = event.data["text"]
        elif event.name == "job.delta":
            text += event.data["text"]
    return text


def _text_until(stream: LiveStream, text: str, expected: str) -> bool:
    """Read on until the text is as expected; at most as many events as that can take."""
    for _ in range(len(expected) + 2):
        if text == expected:
            return True
        text = _final_text([stream.next()], text)
    return False


def test_two_attempts_are_never_glued(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    first = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(first, "old ", "text")
        stream.until("job.delta")
        worker.hand_back(first, charge=True)
        second = worker.claim(job_id)
        worker.say(second, "new")
        restarted = stream.until("job.restarted")[-1]
        worker.say(first, "from the grave")
        worker.succeed(second)
        events = parse(stream.rest())
    assert (restarted.id, restarted.data) == ("2-0", {"attempt": 2, "kept": 0, "text": ""})
    after = events[[event.id for event in events].index("2-0") :]
    assert [event.id for event in after] == ["2-0", "2-1", "2-2"]
    assert "grave" not in str(events)
    late = parse(_read(api, job_id))
    assert [event.name for event in late] == ["job.queued", "job.started", "job.delta", "job.succeeded"]
    returned = parse(_read(api, job_id, "1-1"))
    assert [event.name for event in returned] == ["job.restarted", "job.delta", "job.succeeded"]


def test_the_text_of_an_attempt_that_was_handed_back_is_not_shown(
    api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = server.runtime.reader.get
    looks: list[str] = []

    async def counted(tenant_id: str, job_id: str) -> Job:
        found = await get(tenant_id, job_id)
        looks.append(job_id)
        return found

    monkeypatch.setattr(server.runtime.reader, "get", counted)
    job_id = submit(api)
    with streaming(api, job_id) as stream:
        stream.next()
        first = worker.claim(job_id)
        worker.hand_back(first)
        # A reader that has not looked since may still be shown the text. Of two looks, the second began after it.
        wanted = len(looks) + 2

        def knows() -> bool:
            worker.nudge(job_id)
            return len(looks) >= wanted

        wait_for(knows, "the reader knows that it was handed back")
        worker.say(first, "ghost")
        second = worker.claim(job_id)
        worker.say(second, "real")
        worker.succeed(second)
        events = parse(stream.rest())
    assert [event.id for event in events] == ["0-0", "2-0", "2-1", "2-2"]
    assert events[2].data == {"text": "real"}


def test_text_that_comes_while_postgres_is_away_begins_at_its_beginning(
    api: httpx2.Client, server: ApiServer, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_tenant_id: str, _job_id: str) -> Job:
        raise Unavailable("away")

    job_id = submit(api)
    with streaming(api, job_id) as stream:
        stream.next()
        with monkeypatch.context() as patched:
            patched.setattr(server.runtime.reader, "get", away)
            attempt = worker.claim(job_id)
            worker.say(attempt, "a", "b")
            assert [stream.next().id for _ in range(3)] == ["1-0", "1-1", "1-2"]
        worker.say(attempt, "c")
        worker.succeed(attempt)
        events = parse(stream.rest())
    assert [event.id for event in events] == ["0-0", "1-0", "1-1", "1-2", "1-3", "1-4"]
    assert _final_text(events) == "abc"


@pytest.mark.usefixtures("no_ticks")
def test_cancelling_a_queued_job_ends_its_streams_at_once(api: httpx2.Client) -> None:
    job_id = submit(api)
    with streaming(api, job_id) as stream:
        stream.next()
        api.post(f"/v1/jobs/{job_id}/cancel")
        event = stream.next()
        stream.rest()
    assert (event.id, event.name, event.data["status"]) == ("0-1", "job.cancelled", "cancelled")


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_other_ends_have_their_event(api: httpx2.Client, worker: ScriptedWorker, how: str) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    worker.say(attempt, "half")
    if how == "failed":
        worker.fail(attempt, "out_of_memory", "no memory left")
    else:
        worker.obey_cancel(attempt)
    last = parse(_read(api, job_id))[-1]
    assert (last.id, last.name, last.data["status"]) == ("1-2", f"job.{how}", how)
    assert last.data["error"]["code"] == {"failed": "out_of_memory", "cancelled": "cancelled"}[how]


def test_the_last_event_comes_although_less_was_stored_than_sent(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api, max_attempts=1)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        worker.say(attempt, "a", "b")
        stream.until("job.delta")
        worker.hand_back(attempt, charge=True)
        events = parse(stream.rest())
    assert [event.name for event in events][-2:] == ["job.delta", "job.failed"]
    assert events[-1].id == "1-3"
    for cursor in ("1-1", "1-2"):
        assert parse(_read(api, job_id, cursor))[-1].name == "job.failed"


@some_of(2, "cursor", ["x", "1", "-1-2", "1-2-3", "7-0", "1.0-1", "9" * 40])
def test_a_cursor_that_no_event_has_is_refused(api: httpx2.Client, cursor: str) -> None:
    job_id = submit(api)
    response = api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": cursor})
    assert (response.status_code, error_of(response)["param"]) == (400, "Last-Event-ID")


def test_a_cursor_of_an_attempt_that_has_not_begun_is_refused(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    worker.say(worker.claim(job_id), "a")
    response = api.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "2-0"})
    assert (response.status_code, error_of(response)["param"]) == (400, "Last-Event-ID")
    with streaming(api, job_id, "1-0") as stream:
        assert stream.next().id == "1-1"


def test_a_silent_stream_is_kept_alive(api: httpx2.Client, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    with streaming(api, job_id) as stream:
        stream.until("job.started")
        while b": ping\n\n" not in stream.body:
            stream.more()
        worker.succeed(attempt)
        assert parse(stream.rest())[-1].name == "job.succeeded"


def test_a_draining_server_cuts_its_streams(api: httpx2.Client, server: ApiServer, worker: ScriptedWorker) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    worker.say(attempt, "half")
    with streaming(api, job_id) as stream:
        stream.until("job.delta")
        server.drain()
        with pytest.raises(httpx2.RemoteProtocolError):
            stream.rest()


def test_readers_who_leave_leave_nothing_behind(api: httpx2.Client, server: ApiServer) -> None:
    job_id = submit(api)
    for _ in range(20):
        with streaming(api, job_id) as stream:
            stream.next()
    gauge = server.runtime.metrics.streams_open
    wait_for(lambda: not server.runtime.hub.num_channels, "no job is followed")
    wait_for(lambda: not gauge.collect()[0].samples[0].value, "no reader is being served")


def test_many_readers_each_get_everything(api: httpx2.Client, worker: ScriptedWorker, db: Database) -> None:
    job_id = submit(api)
    attempt = worker.claim(job_id)
    bodies: list[bytes] = []
    readers = [threading.Thread(target=lambda: bodies.append(_read(api, job_id))) for _ in range(30)]
    for index, reader in enumerate(readers):
        reader.start()
        worker.say(attempt, f"{index} ")
    worker.succeed(attempt)
    for reader in readers:
        reader.join()
    assert len(bodies) == 30
    assert set(bodies) == {_read(api, job_id)}
