"""Connections of asyncio whose transport is closed while nobody reads."""

import asyncio

import pytest
import redis
import uvloop

from headrace.store.redis.connection import connect_async
from headrace.store.settings import Settings


@pytest.mark.parametrize("blocking", [False, True])
def test_a_closed_transport_is_an_outage_of_redis_and_the_next_command_has_a_new_one(
    settings: Settings, *, blocking: bool
) -> None:
    async def ask() -> None:
        client = connect_async(settings.redis_url, blocking=blocking)
        try:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(redis.ConnectionError):
                await connection.send_packed_command(connection.pack_command("PING"))
            await client.connection_pool.release(connection)
            assert await client.ping()
        finally:
            await client.aclose()

    # uvloop, as in production: asyncio's own transports take what is written after their end.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())
