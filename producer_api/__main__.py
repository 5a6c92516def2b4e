"""``python -m headrace.producer_api``: the API as a process. An error that prevents the start is one line on stderr."""

import logging
import os
import signal
import socket
import sys

import structlog
import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from headrace.producer_api.app import create_app
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.health import OK, Health
from headrace.producer_api.server.http_server import server_config
from headrace.store import failpoints, interpreter
from headrace.store.calls.addresses import parse_networks
from headrace.store.db.database import Database, parse_url
from headrace.store.db.roles import API, is_bound
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.db.tls import check_transport
from headrace.store.errors import HeadraceError, SettingsError
from headrace.store.logs import configure_logging
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.tracing.tracing import Tracing, open_tracing

_log = structlog.get_logger("headrace.producer_api")

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """Handles signals from the start, and starts the drain before uvicorn waits for connections to end.

    uvicorn installs its handlers late, and after it has stopped it restores the earlier handlers and raises the signals
    again. So both are the same handler. It only sets a flag: Python may drop an exception from a signal handler.
    """

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime

    def install_handlers(self) -> None:
        """Handle the stop signals from now on."""
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the drain, then stop as uvicorn does."""
        self._runtime.draining.set()
        await super().shutdown(sockets)


def main() -> int:
    """Run until a stop signal; return the exit code."""
    try:
        settings = _settings()
        tracing = open_tracing("headrace-api", f"{socket.gethostname()}:{os.getpid()}")
        listener = _listen(settings)
        _check_services(settings)
    except HeadraceError as error:
        sys.stderr.write(f"headrace api: {error.message}\n")
        return 1
    _serve(settings, listener, tracing)
    return 0


def _settings() -> Settings:
    settings = require_services(load_settings())
    parse_networks(settings.webhook_allow_networks)
    configure_logging(settings.log_level)
    check_transport(settings)
    open_seal(settings)  # malformed keys are told before anything is opened
    failpoints.install(settings.failpoints)
    return settings


def _listen(settings: Settings) -> socket.socket:
    """Bind the port before anything else is opened, so that a second API on it fails at once."""
    family = socket.AF_INET6 if ":" in settings.api_host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.api_host, settings.api_port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise SettingsError(f"cannot listen on {settings.api_host}:{settings.api_port}: {reason}") from error
    return listener


def _check_services(settings: Settings) -> None:
    """Raise HeadraceError if Postgres is unavailable or not migrated; log a warning if Redis is unavailable."""
    health = Health(settings)
    try:
        if (postgres := health.postgres()) != OK:
            raise SettingsError(postgres)
        _check_database(settings)
        if (redis := health.redis()) != OK:
            _log.warning("redis_unavailable", reason=redis)
    finally:
        health.close()


def _check_database(settings: Settings) -> None:
    """Raise SettingsError for a wrong encryption key, or for a database user that bypasses row-level security.

    With ``HEADRACE_ROW_SECURITY=off`` such a user is only a warning.
    """
    lists_url = settings.lists_database_url
    if lists_url and parse_url(lists_url).username != parse_url(settings.database_url).username:
        raise SettingsError("HEADRACE_LISTS_DATABASE_URL: give it the user of DATABASE_URL, whom row security binds")
    seal = open_seal(settings)
    db = Database(settings.database_url, pool_size=1, application_name="headrace-api-start", seal=seal)
    try:
        check_seal(db)
        if is_bound(db):
            return
    finally:
        db.close()
    if settings.row_security == "required":
        raise SettingsError(
            f"the user of DATABASE_URL is not bound by row-level security: log in as {API}, whom `headrace migrate "
            "roles` lets in, or set HEADRACE_ROW_SECURITY=off to do without that wall between tenants"
        )
    _log.warning("row_security_off", reason="the user of DATABASE_URL is not bound by it")


def _serve(settings: Settings, listener: socket.socket, tracing: Tracing) -> None:
    app = create_app(settings, tracing)
    config = server_config(app, settings, log_level="warning")
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    server = _Server(config, app.state.runtime)
    server.install_handlers()
    host, port = listener.getsockname()[:2]
    interpreter.settle()
    _log.info("api_started", host=host, port=port)
    try:
        server.run(sockets=[listener])
    finally:
        _log.info("api_stopped")


def _is_news(record: logging.LogRecord) -> bool:
    """Drop uvicorn's message about a connection that was cut on purpose: the stream has logged the reason."""
    return not record.getMessage().startswith("ASGI callable returned without completing response")


if __name__ == "__main__":
    sys.exit(main())
