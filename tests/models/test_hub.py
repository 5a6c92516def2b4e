"""Models of the Hugging Face hub: the real client against a hub of the test, which has one repository."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest

from headrace.store.db.database import Database
from headrace.store.registry.models import resolve
from headrace.store.settings import Settings
from tests.models.tiny import build, save, save_tokenizer
from tests.processes import StartProcess, python

COMMIT = "4f2b" * 10


class Hub:
    """Serves one folder as acme/mill, whose tag v1 is COMMIT. ``taken``: the files that were downloaded."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.taken: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body, headers = hub.answer(self.path, is_read=self.command == "GET")
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, *, is_read: bool) -> tuple[int, bytes, Mapping[str, str]]:
        asked = path.partition("?")[0]
        if asked in {f"/api/models/acme/mill/revision/{name}" for name in ("v1", COMMIT)}:
            siblings = [{"rfilename": name} for name in self.files]
            return 200, orjson.dumps({"id": "acme/mill", "sha": COMMIT, "siblings": siblings}), {}
        if asked == f"/api/models/acme/mill/tree/{COMMIT}":
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return 200, orjson.dumps(listed), {}
        name = path.removeprefix(f"/acme/mill/resolve/{COMMIT}/")
        if name not in self.files:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}
        if is_read:
            self.taken.append(name)
        content = self.files[name]
        tag = hashlib.sha256(content).hexdigest()
        return 200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = save(build("llama"), tmp_path / "published")
    save_tokenizer(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_mill.py").write_text("raise SystemExit")
    found = Hub(folder)
    serving = threading.Thread(target=found.server.serve_forever)
    serving.start()
    yield found
    found.server.shutdown()
    serving.join()
    found.server.server_close()


def test_a_model_of_the_hub_is_registered_at_its_commit_without_pickles_and_code(
    db: Database, settings: Settings, hub: Hub, start_process: StartProcess
) -> None:
    given = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "HEADRACE_HOME": str(settings.home),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }

    def register(asked: str, *more: str) -> tuple[int, str]:
        registering = start_process(
            python("-m", "headrace.models.catalog", "register", "mill", "--hub", asked, *more), given
        )
        return registering.wait_exit(240), registering.log()

    code, said = register("acme/mill@v1")
    assert (code, said.splitlines()[-1]) == (0, "mill@1"), said
    version = resolve(db, "mill")
    assert (version.source, version.runner) == (str(settings.home / "hub" / "acme--mill" / COMMIT), "torch")
    assert {"config.json", "model.safetensors"} <= {*hub.taken}
    assert {"pytorch_model.bin", "modeling_mill.py"}.isdisjoint(hub.taken)
    del hub.taken[:]
    assert register("acme/mill@v1")[1].splitlines()[-1] == "mill@1"
    assert hub.taken == [], "the files are there"
    for asked, why in (("acme/mill@v9", "could not be downloaded"), ("mill", "takes ORG/NAME")):
        code, said = register(asked)
        assert (code, why in said, "Traceback" in said) == (1, True, False), said
    assert register("acme/mill", "--fake")[0] == 2
