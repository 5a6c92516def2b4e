"""Customers record answers of 5xx, which they otherwise only repeat."""

import asyncio
from pathlib import Path

from tests.chaos.cluster import Tenant
from tests.chaos.history import History
from tests.chaos.journal import Journal, read_journal
from tests.chaos.load import Load, Order
from tests.chaos.measures import phases

ORDER = Order(n=4, tenant=0, prompt="tell me of rivers", max_tokens=8, follow="stream")
_LEFT = ["500 Internal Server Error", "503 Service Unavailable", "502 Bad Gateway"]


async def placed(journal: Journal, left: list[str]) -> None:
    """Place one order at a server that gives these answers, then accepts the job and ends its stream."""
    end = b'id: 1-1\nevent: job.succeeded\ndata: {"id": "job_1", "status": "succeeded"}\n\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if length := next((line for line in head.splitlines() if line.lower().startswith("content-length")), ""):
            await reader.readexactly(int(length.partition(":")[2]))
        is_submit = head.startswith("POST")
        # The submit gets all of them but the last, the stream the last one.
        status = left.pop(0) if len(left) > (1 if is_submit else 0) else ("202 Accepted" if is_submit else "200 OK")
        body = b'{"id": "job_1"}' if is_submit else end
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        load = Load(journal, seed=1, tenants=[Tenant("tenant_1", "hr_key", "whsec_")], api_urls=[url], hook_base="")
        await load.place(ORDER)
        await load.settle(60)


def test_each_answer_of_5xx_is_recorded_and_counted_in_its_phase(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "client.jsonl")
    asyncio.run(placed(journal, list(_LEFT)))
    journal.close()
    history = History(
        client=read_journal(tmp_path / "client.jsonl"), nemesis=[{"t": 0.0, "kind": "phase", "name": "both"}]
    )
    assert [(one["status"], one["path"]) for one in history.of_client("server_error")] == [
        (500, "jobs"),
        (503, "jobs"),
        (502, "events"),
    ]
    assert [one["status"] for one in history.of_client("seen")] == ["succeeded"]
    assert phases(history)["both"]["server_errors"] == {"500": 1, "503": 1, "502": 1}
