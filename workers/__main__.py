"""``python -m headrace.workers --model NAME``: one process, one model version, one queue.

Exit codes: 0 after a drain, 1 if a service or the model is missing, or its inference server runs something else (no
job was taken), 2 for a wrong setting or argument, 65 if the version is rejected, 70 if the engine died.
"""

import argparse
import os
import socket
import sys
from functools import partial

from headrace.store import failpoints, interpreter
from headrace.store.db.database import Database, check_schema
from headrace.store.db.seal_part import check_seal, open_seal
from headrace.store.db.tls import check_transport
from headrace.store.errors import HeadraceError, ModelLoadError, SettingsError, VersionRejected
from headrace.store.ids import new_id
from headrace.store.logs import configure_logging
from headrace.store.redis.connection import connect, ping
from headrace.store.registry.engine_spec import EXTERNAL_KINDS, EngineKind
from headrace.store.registry.models import queue_name, read_file, resolve
from headrace.store.registry.verification import Verification
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.supervisor import NOT_AGAIN
from headrace.store.tracing.tracing import OFF, Tracing, open_tracing
from headrace.workers.quality import QualityCheck
from headrace.workers.tasks.generate_external import NO_SERVER, ServerStart, load_external_model
from headrace.workers.tasks.registry import loader_of
from headrace.workers.tasks.task_model import TaskModel
from headrace.workers.verification import load_served, load_verified
from headrace.workers.worker_app import build_worker, drain_on_signals
from headrace.workers.worker_runtime import WorkerRuntime


def main(argv: list[str] | None = None) -> int:
    """Run a worker until a signal stops it; return the exit code."""
    options = _arguments(argv)
    try:
        settings = require_services(load_settings())
        configure_logging(settings.log_level)
        check_transport(settings)
        failpoints.install(settings.failpoints)
        tracing = open_tracing("headrace-worker", f"{socket.gethostname()}:{os.getpid()}")
    except (SettingsError, ValueError) as error:
        return _refuse(str(error), 2)
    try:
        model = load(settings, options.model, _server_start(options))
    except VersionRejected as error:
        return _refuse(error.message, NOT_AGAIN)
    except HeadraceError as error:
        return _refuse(error.message, 2 if isinstance(error, SettingsError) else 1)
    unset = {name: value for name, value in model.default_settings.items() if name not in settings.model_fields_set}
    settings = settings.model_copy(update=unset)
    return run(settings, model, name=options.name, concurrency=options.concurrency, tracing=tracing)


def load(settings: Settings, name: str, server: ServerStart = NO_SERVER) -> TaskModel:
    """Check both services, and load and verify the model of this name. Raises HeadraceError; takes no job.

    ``server``: the inference server that the command line asks for.
    """
    db = Database(
        settings.database_url, pool_size=1, application_name="headrace worker start", seal=open_seal(settings)
    )
    client = connect(settings.redis_url)
    try:
        check_schema(db)
        check_seal(db)
        ping(client)
        version = resolve(db, name, with_retired=True)
        if version.base is not None and version.shares_weights:
            version = resolve(db, version.base, with_retired=True)
        if version.base is not None:
            name = queue_name(version.model, version.version)
            raise ModelLoadError(
                f"{name} is an adapter, and the workers of its base serve it: start one with --model {version.base}"
            )
        worker = f"{socket.gethostname()}:{os.getpid()}"
        verification = Verification(db, version.model, version.version, worker=worker, lease_s=settings.lease_s)
        if version.engine.is_external or server != NO_SERVER:
            start = partial(load_external_model, version, settings, partial(read_file, db), server)
            return load_served(verification, start, settings)
        read = partial(read_file, db)
        load_model = partial(loader_of(version), version, settings, read)
        quality = QualityCheck(settings, version, read, lambda name: resolve(db, name, with_retired=True))
        return load_verified(verification, load_model, settings, quality)
    finally:
        client.close()
        db.close()


def run(
    settings: Settings, model: TaskModel, *, name: str | None, concurrency: int | None, tracing: Tracing = OFF
) -> int:
    """Run jobs until a signal stops the worker; return the exit code."""
    hostname = f"{name or f'{model.version.model}-{os.getpid()}'}@{socket.gethostname()}"
    # More threads than slots, because a job holds its thread while its outcome is written.
    threads = concurrency or 2 * settings.max_slots
    owner = f"{hostname}:{os.getpid()}:{new_id('boot')[-8:]}"
    runtime = WorkerRuntime(settings, model, owner=owner, max_jobs=threads, tracing=tracing)
    worker = build_worker(settings, runtime, queue=model.queue, hostname=hostname, concurrency=threads)
    # Before a job is taken: without the handlers a signal would kill the worker, and its jobs would wait for their
    # leases.
    drain_on_signals(runtime)
    runtime.start()
    interpreter.settle()
    try:
        worker.start()
    finally:
        runtime.stop()
        model.close()
    return int(worker.exitcode or 0)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace worker", description="Run jobs of one model version.")
    parser.add_argument("--model", required=True, help="name, name@version or name@alias")
    parser.add_argument("--concurrency", type=_positive, help="jobs in flight at most; by default twice the slots")
    parser.add_argument("--name", help="node name in Flower; by default the model's name and the process id")
    parser.add_argument(
        "--engine", choices=[kind.value for kind in EXTERNAL_KINDS], help="start this inference server for the model"
    )
    parser.add_argument(
        "--server-url", help="the server that a model host has started for the version, which may sleep"
    )
    parser.add_argument("server_arguments", nargs="*", help="after --: arguments of that server")
    return parser.parse_args(argv)


def _server_start(options: argparse.Namespace) -> ServerStart:
    kind = None if options.engine is None else EngineKind(options.engine)
    return ServerStart(kind, tuple(options.server_arguments), options.server_url)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _refuse(message: str, code: int) -> int:
    sys.stderr.write(f"headrace worker: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
