"""``python -m headrace.features.hosts --memory 4GiB``, or ``--autoscale``: the model host of one machine.

Exit codes: 0 after its workers have drained, 1 if a service is missing or another host has the name, 2 for a wrong
setting or argument.
"""

import argparse
import re
import socket
import sys
from functools import partial

from headrace.features.hosts.host_loop import HostLoop
from headrace.features.hosts.host_metrics import HostMetrics
from headrace.features.hosts.model_host import ModelHost
from headrace.features.hosts.placement import Rules
from headrace.features.hosts.scaled_host import ScaledHost
from headrace.store.db.database import Database, check_schema
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.db.tls import check_transport
from headrace.store.errors import HeadraceError, InvalidRequest, SettingsError
from headrace.store.hosts.hosted_versions import HostedVersion
from headrace.store.logs import configure_logging
from headrace.store.machine import parse_memory
from headrace.store.redis.connection import connect, ping
from headrace.store.registry.models import resolve
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.stop_signals import on_stop_signals
from headrace.workers.health import HealthServer

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def main(argv: list[str] | None = None) -> int:
    """Run a model host until a signal stops it; return the exit code."""
    options = _arguments(argv)
    try:
        settings = require_services(load_settings())
        configure_logging(settings.log_level)
        check_transport(settings)
        check_services(settings, options.models)
        metrics = HostMetrics()
        host = _host(settings, options, metrics)
        health = HealthServer(settings.health_host, settings.host_port, metrics.render, {"loop": host.heartbeat.check})
        health.start()
    except (SettingsError, InvalidRequest, ValueError) as error:
        return _refuse(str(error), 2)
    except HeadraceError as error:
        return _refuse(error.message, 1)
    except OSError as error:
        return _refuse(f"cannot listen on port {settings.host_port}: {error.strerror}", 2)
    on_stop_signals(host.stop)
    try:
        host.run()
    except HeadraceError as error:
        return _refuse(error.message, 1)
    finally:
        health.stop()
    return 0


def _host(settings: Settings, options: argparse.Namespace, metrics: HostMetrics) -> HostLoop:
    is_ours = partial(_is_named, options.models)
    if options.autoscale:
        return ScaledHost(settings, options.name, metrics, is_ours=is_ours)
    rules = _rules(settings, options.memory)
    return ModelHost(settings, options.name, rules, metrics, is_ours=is_ours, sleep_bytes=options.sleep_memory or 0)


def _rules(settings: Settings, budget_bytes: int) -> Rules:
    return Rules(
        budget_bytes,
        residence_s=settings.host_residence_s,
        turn_s=settings.host_turn_s,
        drain_s=settings.drain_s,
        swap_share=settings.host_swap_share,
    )


def check_services(settings: Settings, models: tuple[str, ...]) -> None:
    """Check both services and the names of the models. Raises HeadraceError."""
    db = Database(settings.database_url, pool_size=1, application_name="headrace host start", seal=open_seal(settings))
    client = connect(settings.redis_url)
    try:
        check_schema(db)
        check_seal(db)
        ping(client)
        for name in models:
            version = resolve(db, name, with_retired=True)
            if version.base is not None and (name != version.model or not version.shares_weights):
                raise InvalidRequest(
                    f"--models: {name} has no worker of its own, it rides with its base: name {version.base}"
                )
    finally:
        client.close()
        db.close()


def _is_named(models: tuple[str, ...], version: HostedVersion) -> bool:
    """Return whether ``--models`` names the version: by its model, or by its number. No names: all versions."""
    return not models or not {version.model, version.queue}.isdisjoint(models)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace host", description="Serve many models in little memory.")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--memory", type=_memory, help="memory for all workers, such as 4GiB: a place for each version")
    kinds.add_argument("--autoscale", action="store_true", help="as many workers as HEADRACE_AUTOSCALE decides")
    parser.add_argument(
        "--sleep-memory", type=_memory, help="main memory for vLLM servers that sleep while they have no place"
    )
    parser.add_argument("--models", type=_models, default=(), help="NAME or NAME@VERSION, with commas; default: all")
    parser.add_argument("--name", type=_host_name, default=_default_name(), help="default: the machine's name")
    options = parser.parse_args(argv)
    if options.sleep_memory and options.autoscale:
        parser.error("--sleep-memory goes with --memory: the workers of --autoscale start and stop their servers")
    return options


def _memory(given: str) -> int:
    try:
        return parse_memory(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _models(given: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in given.split(",") if part.strip())
    for name in names:
        reference = name.partition("@")[2]
        if "@" in name and not reference.isdecimal():
            raise argparse.ArgumentTypeError(f"{name!r}: write NAME for all versions of a model, or NAME@3")
    if not names:
        raise argparse.ArgumentTypeError("no model: write a name, or leave it out for all models")
    return names


def _host_name(given: str) -> str:
    if not _NAME.fullmatch(given):
        raise argparse.ArgumentTypeError(f"{given!r}: a name is letters, digits and . _ -")
    return given


def _default_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63].lstrip("._-") or "host"


def _refuse(message: str, code: int) -> int:
    sys.stderr.write(f"headrace host: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
