"""Flower on this broker, read-only and with a password: ``python -m headrace.workers.flower``.

It is not started by ``celery flower``, which also takes options from ``FLOWER_…`` variables and runs a
``flowerconfig.py`` of the working directory: both could remove the restrictions. Flower reads Celery's events and
statistics: job ids, model versions and error codes, no prompts and no outputs.
"""

import hashlib
import hmac
import sys
from base64 import b64decode
from binascii import Error as NotBase64
from typing import Any

from flower.app import Flower
from flower.options import default_options
from flower.urls import settings as flower_settings
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler

from headrace.store.db.tls import check_transport
from headrace.store.errors import HeadraceError, SettingsError
from headrace.store.logs import configure_logging
from headrace.store.redis.celery_queue import celery_app
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.stop_signals import on_stop_signals

_READING = frozenset({"GET", "HEAD"})
# A POST that only reads: Flower's page loads the table of tasks by it.
_TABLE = "/tasks/datatable"
# Returns only "OK", for health probes.
_OPEN = frozenset({"/healthcheck"})
# Allowed requests have no body, or the few columns of the table.
_MAX_BODY_BYTES = 64 << 10
_MAX_HEADER_BYTES = 16 << 10
_IDLE_S = 75
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="headrace"'}


class RefusalHandler(RequestHandler):
    """Refuses a request in place of Flower's handlers."""

    def initialize(self, status: int, headers: dict[str, str]) -> None:
        """Set the answer."""
        self._answer = status, headers

    def check_xsrf_cookie(self) -> None:
        """Do not check: a refusal changes nothing."""

    def prepare(self) -> None:
        """Answer every method."""
        status, headers = self._answer
        self.set_status(status)
        for name, value in headers.items():
            self.set_header(name, value)
        self.finish()


class GuardedFlower(Flower):  # type: ignore[misc]  # it ships no annotations
    """Flower that requires the password at every address and refuses writes, independently of its own options."""

    def __init__(self, credentials: str, **options: Any) -> None:
        super().__init__(**options)
        self._credentials = _digest(credentials.encode())

    def listen_on(self, host: str, port: int) -> None:
        """Open the port. Raises OSError."""
        server = HTTPServer(
            self,
            max_body_size=_MAX_BODY_BYTES,
            max_header_size=_MAX_HEADER_BYTES,
            body_timeout=_IDLE_S,
            idle_connection_timeout=_IDLE_S,
        )
        server.add_sockets(bind_sockets(port, address=host))

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> Any:
        """Return Flower's handler, or one that refuses: 401 without the password, 405 for a write."""
        if request.path not in _OPEN and not self._may_enter(request.headers.get("Authorization", "")):
            refused = {"status": 401, "headers": _CHALLENGE}
        elif request.method not in _READING and (request.method, request.path) != ("POST", _TABLE):
            refused = {"status": 405, "headers": {"Allow": ", ".join(sorted(_READING))}}
        else:
            return super().find_handler(request, **options)
        return self.get_handler_delegate(request, RefusalHandler, refused)

    def _may_enter(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = b64decode(encoded.strip(), validate=True)
        except (NotBase64, ValueError):
            given = b""
        # Digests are compared, so that the duration reveals neither the text nor its length.
        return hmac.compare_digest(_digest(given), self._credentials) and scheme.lower() == "basic"


def _digest(credentials: bytes) -> bytes:
    return hashlib.sha256(credentials).digest()


def credentials_of(settings: Settings) -> str:
    """Return ``user:password``; raise SettingsError without ``HEADRACE_FLOWER_BASIC_AUTH``."""
    user, colon, password = settings.flower_basic_auth.partition(":")
    if not (user and colon and password):
        raise SettingsError("HEADRACE_FLOWER_BASIC_AUTH is not set to user:password: Flower is not started without one")
    if not settings.flower_basic_auth.isascii():
        raise SettingsError("HEADRACE_FLOWER_BASIC_AUTH may have ASCII letters, digits and signs only")
    return settings.flower_basic_auth


def _flower(settings: Settings, credentials: str) -> GuardedFlower:
    default_options.max_tasks = 5000
    # Flower's own password check as a second one; read_only hides its buttons.
    default_options.basic_auth = [credentials]
    default_options.read_only = True
    return GuardedFlower(credentials, capp=celery_app(settings), options=default_options, **flower_settings)


def main() -> int:
    """Run Flower until a signal stops it."""
    try:
        settings = require_services(load_settings(), only_redis=True)
        credentials = credentials_of(settings)
        configure_logging(settings.log_level)
        check_transport(settings)
        flower = _flower(settings, credentials)
        flower.listen_on(settings.flower_host, settings.flower_port)
    except HeadraceError as error:
        return _refuse(error.message)
    except OSError as error:
        return _refuse(f"cannot listen on {settings.flower_host}:{settings.flower_port}: {error.strerror}")
    on_stop_signals(lambda: flower.io_loop.add_callback(flower.io_loop.stop))
    try:
        flower.start()
    finally:
        flower.stop()
    return 0


def _refuse(message: str) -> int:
    sys.stderr.write(f"headrace flower: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
