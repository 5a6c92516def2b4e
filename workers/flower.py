"""Starts Flower on this broker: ``python -m workers.flower``. Never without a password, and never with it in ``ps``.

Flower reads Celery's events and statistics; it knows job ids and model versions, no prompt and no output.
"""

import sys

from store.errors import HeadraceError, SettingsError
from store.queue import celery_app
from store.settings import Settings, load_settings, require_services


def flower_arguments(settings: Settings) -> list[str]:
    """The arguments of ``celery flower``; raises SettingsError without ``HEADRACE_FLOWER_BASIC_AUTH``."""
    user, colon, password = settings.flower_basic_auth.partition(":")
    if not (user and colon and password):
        raise SettingsError("HEADRACE_FLOWER_BASIC_AUTH is not set to user:password: Flower is not started without one")
    return [
        "flower",
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        f"--basic-auth={settings.flower_basic_auth}",
        "--read-only=True",
        "--max-tasks=5000",
    ]


def main() -> int:
    """Run Flower until it is stopped."""
    try:
        settings = require_services(load_settings())
        arguments = flower_arguments(settings)
    except HeadraceError as error:
        sys.stderr.write(f"headrace flower: {error.message}\n")
        return 2
    # In-process, so that the password is in no command line.
    celery_app(settings).start(argv=arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
