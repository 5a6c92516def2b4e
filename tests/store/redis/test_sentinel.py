"""Redis behind Sentinel: what an address may be, and every kind of client before and after a failover."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from celery import Celery

from headrace.store.errors import SettingsError, Unavailable
from headrace.store.redis.celery_queue import FastLaneHints, Hint, HintPublisher, celery_app
from headrace.store.redis.connection import CircuitBreaker, connect, connect_async, ping
from headrace.store.redis_address import parse_sentinel
from headrace.store.settings import Settings
from headrace.store.streams.hub import Hub
from headrace.store.streams.stream_log import Frame, StreamPublisher
from tests.processes import until, wait_for
from tests.sentinel import SentinelSet, running_sentinels

QUEUE = "m@1"
HINT = Hint("job-1", QUEUE, QUEUE)
ANSWER = [*(Frame("streamed", 1, n, f"w{n} ") for n in range(1, 40)), Frame("streamed", 1, 40, None)]
HALF = 20
PATIENCE_S = 90.0  # a Sentinel that was stopped for two seconds decides nothing for thirty


def test_an_address_gives_all_sentinels_and_the_two_logins() -> None:
    url = (
        "rediss+sentinel://app:p%40ss@a:1,[::1]:2,c/main/3?sentinel_username=s&sentinel_password=q%26&ssl_ca_certs=/ca"
    )
    found = parse_sentinel(url)
    assert found.sentinels == (("a", 1), ("::1", 2), ("c", 26379))
    assert (found.service, found.db, found.username, found.password) == ("main", 3, "app", "p@ss")
    assert (found.sentinel_username, found.sentinel_password) == ("s", "q&")
    assert found.is_encrypted
    assert found.tls == {"ssl_ca_certs": "/ca"}
    assert "p@ss" not in repr(found)
    assert "q&" not in repr(found)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://a:26379", "service .*redis.sentinel://host:26379"),
        ("redis+sentinel://a:26379/main/x", "service"),
        ("redis+sentinel://a:26379,,b/main", "host .*Sentinel"),
        ("redis+sentinel://a:99999/main", "host .*Sentinel"),
        ("redis+sentinel://a/main?socket_timeout=1", "unknown option socket_timeout: use sentinel_password, "),
        ("redis+sentinel://a/main?ssl_ca_certs=/ca", r"ssl_ca_certs needs rediss\+sentinel://"),
    ],
)
def test_an_address_that_says_too_little_or_too_much_is_refused(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_sentinel(url)


def test_celery_is_given_each_sentinel_with_the_login_and_tls(settings: Settings) -> None:
    url = "rediss+sentinel://u:p%2F@a:1,b/main/2?sentinel_password=q&ssl_check_hostname=false"
    app = celery_app(settings.model_copy(update={"redis_url": url}))
    assert app.conf.broker_url == "sentinel://u:p%2F@a:1/2;sentinel://u:p%2F@b:26379/2"
    assert app.conf.broker_transport_options["master_name"] == "main"
    asked = app.conf.broker_transport_options["sentinel_kwargs"]
    assert (asked["password"], asked["ssl"], asked["ssl_cert_reqs"]) == ("q", True, "required")
    assert app.conf.broker_use_ssl == {"ssl_cert_reqs": "required", "ssl_check_hostname": False}
    app.close()


def test_without_sentinels_the_error_names_the_service_and_no_password() -> None:
    with (
        connect("redis+sentinel://:secret@127.0.0.1:1/main") as client,
        pytest.raises(Unavailable, match="primary main") as caught,
    ):
        ping(client)
    assert "secret" not in str(caught.value)


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_every_kind_of_client_finds_the_new_primary_and_streams_stay_whole(
    settings: Settings, tmp_path: Path
) -> None:
    with running_sentinels(tmp_path, password="secret", down_after_ms=2000) as servers:
        app = celery_app(settings.model_copy(update={"redis_url": servers.url}))
        hub = Hub(servers.url)
        await hub.start()
        reading = asyncio.create_task(_read(hub))
        try:
            await asyncio.to_thread(_fail_over, servers, app)
            assert await asyncio.wait_for(reading, PATIENCE_S) == ANSWER
            await until(lambda: hub.is_connected, "the subscription is at the new primary")
            await _ask_async(servers.url)
        finally:
            reading.cancel()
            await hub.stop()
            app.close()


async def _read(hub: Hub) -> list[Frame]:
    async with aclosing(hub.follow("streamed")) as stream:
        return [frame async for frame in stream if frame is not None]


async def _ask_async(url: str) -> None:
    for blocking in (True, False):
        client = connect_async(url, blocking=blocking)
        assert await client.get("written") == b"before"
        await client.aclose()


def _fail_over(servers: SentinelSet, app: Celery) -> None:
    """Write, kill the primary, and write on with the same clients."""
    client = connect(servers.url)
    publisher = StreamPublisher(client, maxlen=1000, ttl_s=60)
    hints, lane = HintPublisher(app), FastLaneHints(servers.url, QUEUE, lambda: None)
    breaker = CircuitBreaker(servers.url)
    breaker.start()
    try:
        publisher.publish(ANSWER[:HALF])
        hints.publish([HINT])
        client.set("written", "before")
        assert client.wait(1, 60_000) == 1
        first = servers.primary()
        first.stop()
        breaker.failed()
        _retry(lambda: publisher.publish(ANSWER[HALF:]))
        _retry(lambda: hints.publish([HINT]))
        wait_for(lambda: not breaker.is_away, "the circuit breaker has closed")
        assert servers.primary() is not first
        # The publisher repeats a call if its answer was lost: a hint may come twice.
        assert hints.depth(QUEUE) >= 2
        _take_all(app, hints, lane)
    finally:
        breaker.stop()
        lane.close()
        hints.close()
        client.close()


def _retry(call: Callable[[], object]) -> None:
    def tried() -> bool:
        try:
            call()
        except Unavailable:
            return False
        return True

    wait_for(tried, "the call succeeds", PATIENCE_S)


def _take_all(app: Celery, hints: HintPublisher, lane: FastLaneHints) -> None:
    """Take the hint from before the failover and the one from after it, as workers do, and one from the fast lane."""
    with app.connection_for_read() as connection, connection.SimpleBuffer(QUEUE) as queue:
        for _ in range(2):
            assert queue.get(timeout=30).headers["id"] == HINT.job_id
    hints.publish([Hint("job-2", QUEUE, QUEUE, goes_ahead=True)])
    assert lane.take(30) == "job-2"
