"""A webhook receiver as a process of its own: ``python -m tests.chaos.receiver PORT LOG SECRETS [ADDRESS]``.

Every path is ``/<tenant number>/<behaviour>``. It checks each signature with its own HMAC, not with the library that
the sender uses, and writes down every call with the answer that it gave.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

from tests.chaos.journal import Journal, now_s

_NO_LINGER = struct.pack("ii", 1, 0)
_ANSWERS = {"ok": 204, "500": 500, "301": 301, "410": 410, "429": 429}
_HEADERS = {301: "location: /0/ok\r\n", 429: "retry-after: 2\r\n"}
OLDEST_S = 300


def signature_of(secret: str, event_id: str, timestamp: str, body: bytes) -> str:
    """Return what the header must contain, by the Standard Webhooks 1.0.0 text."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Return the first line, the headers by their names in small letters, and the body of a request of HTTP."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return first, headers, await reader.readexactly(int(headers.get("content-length", "0")))


class Server(ABC):
    """Takes requests on connections of their own. One that breaks off is no error of the server."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            await self._serve(reader, writer)
        writer.close()

    @abstractmethod
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


class Receiver(Server):
    """Answers by path: ok, 500, 301, 410, 429, rst, slow (drips for ever), flaky (fails each event once)."""

    def __init__(self, journal: Journal, secrets: list[str]) -> None:
        self._journal = journal
        self._secrets = secrets
        self._calls: Counter[str] = Counter()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, headers, body = await read_request(reader)
        _, tenant, behaviour = first.split(" ")[1].split("/", 2)
        event_id = headers.get("webhook-id", "")
        self._calls[event_id] += 1
        answer = self._answer(behaviour, event_id)
        event = json.loads(body)
        self._journal.write(
            "hook",
            id=event_id,
            job=event["data"]["id"],
            type=event["type"],
            status=event["data"].get("status"),
            signed=self._is_signed(int(tenant), headers, body),
            answer=answer,
            path=behaviour,
        )
        await _reply(writer, answer)

    def _answer(self, behaviour: str, event_id: str) -> str:
        if behaviour == "flaky":
            is_first = self._calls[event_id] == 1
            return ("500" if hashlib.sha256(event_id.encode()).digest()[0] % 2 else "rst") if is_first else "204"
        return str(_ANSWERS.get(behaviour, behaviour))

    def _is_signed(self, tenant: int, headers: dict[str, str], body: bytes) -> bool:
        timestamp = headers.get("webhook-timestamp", "0")
        expected = signature_of(self._secrets[tenant], headers.get("webhook-id", ""), timestamp, body)
        is_fresh = abs(now_s() - float(timestamp)) < OLDEST_S
        return is_fresh and expected in headers.get("webhook-signature", "").split(" ")


async def _reply(writer: asyncio.StreamWriter, answer: str) -> None:
    if answer == "rst":
        found = writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()
        return
    if answer == "slow":
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.2)
    status = int(answer)
    more = _HEADERS.get(status, "")
    writer.write(f"HTTP/1.1 {status} X\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n".encode())
    await writer.drain()


async def main(port: int, log: Path, secrets: list[str], address: str = "127.0.0.1") -> None:
    """Serve until killed."""
    receiver = Receiver(Journal(log), secrets)
    server = await asyncio.start_server(receiver.serve, address, port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), *sys.argv[4:]))
