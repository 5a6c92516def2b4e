"""Connections of asyncio whose transport is closed while nobody reads."""

import asyncio
from typing import Any

import pytest
import redis
import uvloop

from headrace.store.redis.connection import connect_async
from headrace.store.settings import Settings
from tests.processes import WAIT_S


async def ping_for_ever(connection: Any) -> None:
    while True:
        await connection.send_packed_command(connection.pack_command("PING"))
        await asyncio.sleep(0)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_closed_transport_is_an_outage_of_redis_and_the_next_command_has_a_new_one(
    settings: Settings, redis_client: redis.Redis, *, blocking: bool
) -> None:
    async def ask() -> None:
        client = connect_async(settings.redis_url, blocking=blocking)
        try:
            connection = await client.connection_pool.get_connection()
            await connection.send_command("CLIENT", "ID")
            redis_client.client_kill_filter(_id=await connection.read_response())
            with pytest.raises(redis.ConnectionError):
                await asyncio.wait_for(ping_for_ever(connection), WAIT_S)
            await client.connection_pool.release(connection)
            assert await client.ping()
        finally:
            await client.aclose()

    # uvloop, as in production: asyncio's own transports take what is written after their end.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())
