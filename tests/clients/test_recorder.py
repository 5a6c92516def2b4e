"""The recorder of ``make clients``: what it passes on, what it records, and the list of reviewed refusals."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from tests.clients.recorder import Refusal, Reviewed, read_reviewed, recording, unreviewed

REFUSED = {"error": {"code": "unsupported_parameter", "param": "regex", "message": "`regex` is not supported"}}


class Api(BaseHTTPRequestHandler):
    """Refuses the path /bad, cuts the stream of /cut, and echoes everything else in pieces."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/bad?a=1":
            self.send_response(400)
            refused = json.dumps(REFUSED).encode()
            self.send_header("content-length", str(len(refused)))
            self.end_headers()
            self.wfile.write(refused)
            return
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in (body[:3], body[3:]):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if self.path == "/cut":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_refusal_is_recorded_and_everything_is_passed_on(api: str) -> None:
    with recording(api) as recorder, httpx2.Client(base_url=recorder.url, trust_env=False, timeout=60) as client:
        assert client.post("/good", content=b"streamed").content == b"streamed"
        refused = client.post("/bad?a=1", content=b"x")
        assert (refused.status_code, refused.json()) == (400, REFUSED)
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post("/cut", content=b"streamed")
        assert recorder.take() == [
            Refusal("POST", "/bad", 400, "unsupported_parameter", "regex", "`regex` is not supported")
        ]
        assert (recorder.take(), recorder.num_exchanges, recorder.num_failures) == ([], 3, 0)


def test_only_what_was_reviewed_passes() -> None:
    refusal = Refusal("POST", "/v1/chat/completions", 400, "unsupported_parameter", "regex", "send `x`")
    entries = {
        "the same": (Reviewed("unsupported_parameter", "why", param="regex", message="send"), True),
        "any": (Reviewed("unsupported_parameter", "why"), True),
        "this client": (Reviewed("unsupported_parameter", "why", clients=("llm",)), True),
        "another client": (Reviewed("unsupported_parameter", "why", clients=("LiteLLM",)), False),
        "another field": (Reviewed("unsupported_parameter", "why", param="ebnf"), False),
        "another text": (Reviewed("unsupported_parameter", "why", message="leave"), False),
        "another code": (Reviewed("invalid_value", "why"), False),
    }
    for name, (entry, is_covered) in entries.items():
        assert unreviewed("llm", [refusal, refusal], [entry]) == ([] if is_covered else [refusal]), name


def test_each_entry_of_the_list_has_its_reason() -> None:
    assert all(len(entry.why.split()) > 5 for entry in read_reviewed())
