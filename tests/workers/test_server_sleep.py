"""A vLLM server on this machine is put to sleep and woken, with a server that answers as a test says."""

import json
import socket

import pytest

from headrace.store.errors import Unavailable
from headrace.workers.server_sleep import fall_asleep, wake
from tests.workers.receiver import Answer, Call, Receiver


class Server(Receiver):
    """A server that sleeps or not; ``does`` says if it obeys."""

    def __init__(self, *, sleeps: bool, does: bool = True) -> None:
        super().__init__()
        self.sleeps, self.does = sleeps, does
        self.answer = self.obey
        self.status = 200

    def obey(self, call: Call) -> Answer:
        if call.path == "/is_sleeping":
            return Answer(200, body=json.dumps({"is_sleeping": self.sleeps}).encode())
        if self.does:
            self.sleeps = call.path.startswith("/sleep")
        return Answer(self.status)

    @property
    def port(self) -> int:
        return int(self.url("").rpartition(":")[2])


def asked(server: Server) -> list[str]:
    return [call.path for call in server.calls]


def test_a_server_sleeps_when_it_is_asked_and_says_so() -> None:
    server = Server(sleeps=False)
    try:
        fall_asleep("127.0.0.1", server.port, "key")
        assert asked(server) == ["/sleep?level=1", "/is_sleeping"]
        assert {call.headers["authorization"] for call in server.calls} == {"Bearer key"}
        assert [call.body for call in server.calls] == [b"{}", b""]
        wake("127.0.0.1", server.port, "key")
        assert asked(server)[2:] == ["/is_sleeping", "/wake_up", "/is_sleeping"]
        wake("127.0.0.1", server.port, "key")
        assert asked(server)[5:] == ["/is_sleeping"], "it is awake"
    finally:
        server.close()


@pytest.mark.parametrize("sleeps", [False, True])
def test_a_server_that_does_not_obey_is_told_of(sleeps: bool) -> None:
    server = Server(sleeps=sleeps, does=False)
    move, reason = (wake, "not wake") if sleeps else (fall_asleep, "not sleep")
    try:
        with pytest.raises(Unavailable, match=reason):
            move("127.0.0.1", server.port, "key")
        server.status = 501
        with pytest.raises(Unavailable, match="answered 501"):
            move("127.0.0.1", server.port, "key")
    finally:
        server.close()


def test_a_server_that_does_not_listen_yet_starts_awake() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        wake("127.0.0.1", port, "key")
        with pytest.raises(OSError, match="refused"):
            fall_asleep("127.0.0.1", port, "key")
