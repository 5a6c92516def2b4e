"""Commands that run another program of Headrace: processes, migrations, the model catalogue."""

import signal
from collections.abc import Mapping
from typing import Annotated, NoReturn

import typer

from headrace.cli.operator import register_options as options
from headrace.cli.render import JsonOption
from headrace.store.errors import InvalidRequest
from headrace.store.registry.engine_spec import EngineKind

_AS_JSON = {True: ["--json"], False: []}


def api() -> None:
    """Run only the API, with DATABASE_URL, REDIS_URL and HEADRACE_API_PORT, or those of the running stack."""
    become("headrace.producer_api")


def worker(
    model: Annotated[str, typer.Option(help="name, name@version or name@alias.")],
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Jobs in flight at most; by default twice the slots.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Node name in Flower; by default the model's name and the process id.")
    ] = None,
    engine: Annotated[
        EngineKind | None, typer.Option(help="Start this inference server for the model, and end it with the worker.")
    ] = None,
    server_arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: arguments of that server, such as --tensor-parallel-size 4.")
    ] = None,
) -> None:
    """Run one worker for one model version, with DATABASE_URL and REDIS_URL, or those of the running stack."""
    kind = None if engine in (None, EngineKind.NATIVE) else engine.value
    given = {"--model": model, "--concurrency": concurrency, "--name": name, "--engine": kind}
    become("headrace.workers", *words(given), *(["--", *server_arguments] if server_arguments else []))


def dispatcher() -> None:
    """Run a dispatcher, with DATABASE_URL and REDIS_URL, or those of the running stack. A second one is a standby."""
    become("headrace.workers.dispatcher")


def upgrade() -> None:
    """Upgrade the schema of the database at DATABASE_URL; it may be in use."""
    become("headrace.migrations", "upgrade")


def roles() -> None:
    """Upgrade, and let the processes' roles log in, with passwords from HEADRACE_API_DATABASE_PASSWORD, _WORKER_…
    and _OPERATOR_…."""
    become("headrace.migrations", "roles")


def history() -> None:
    """List the revisions, with a mark for those that are applied."""
    become("headrace.migrations", "history")


def check() -> None:
    """Compare the schema with the code's tables, and check tenant isolation; exit 1 for a difference."""
    become("headrace.migrations", "check")


def vectors() -> None:
    """Build the search indexes of large vector stores, and drop those of deleted ones; the database may be in use."""
    become("headrace.migrations", "vectors")


def register(
    name: Annotated[str, typer.Argument(help="What jobs will call it.")],
    source: options.Source = None,
    dtype: options.Dtype = "auto",
    sampling: options.Sampling = None,
    golden: options.Golden = None,
    engine: options.Engine = EngineKind.NATIVE,
    task: options.Task = None,
    folder: options.Folder = None,
    hub: options.Hub = None,
    base: options.Base = None,
    url: options.Url = None,
    served_model: options.ServedModel = None,
    tokenizer: options.Tokenizer = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    context_window: options.ContextWindow = None,
    batch_invariant: options.BatchInvariant = False,
    accepts: options.Accepts = None,
    as_json: JsonOption = False,
) -> None:
    """Register a model's files as its next version; `headrace worker --model NAME` then serves it.

    With --engine an inference server computes it (docs/engines.md). With --base it is a LoRA adapter (docs/lora.md).
    With --task it belongs to a task of your own, and SOURCE may be left out (docs/extending.md).
    """
    given = {
        "--dtype": dtype,
        "--sampling": sampling,
        "--golden": golden,
        "--engine": None if engine is EngineKind.NATIVE else engine.value,
        "--task": task,
        "--source": folder,
        "--hub": hub,
        "--base": base,
        "--url": url,
        "--served-model": served_model,
        "--tokenizer": tokenizer,
        "--adapter": adapter,
        "--revision": revision,
        "--quantization": quantization,
        "--context-window": context_window,
        "--accepts": accepts,
    }
    flags = [*_AS_JSON[as_json], *(["--batch-invariant"] if batch_invariant else [])]
    become("headrace.models.catalog", "register", name, *([str(source)] if source else []), *words(given), *flags)


def measure(
    source: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder in the Hugging Face layout.")],
    as_json: JsonOption = False,
) -> None:
    """Measure the error of bfloat16 and int8 against float32, which decides the dtype `auto`.

    A version in another number format (`headrace models quantize`) is measured by the worker that verifies it.
    """
    if "@" in source:
        raise InvalidRequest(f"{source} is measured by the worker that verifies it: `headrace models quality` shows it")
    become("headrace.models.catalog", "measure", source, *_AS_JSON[as_json])


def words(given: Mapping[str, object]) -> list[str]:
    """Return options and their values as words of a command, without those that were not given."""
    return [str(word) for pair in given.items() if pair[1] is not None for word in pair]


def become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by ``python -m module``."""
    # The program needs a second or more for its imports, before it handles signals.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from headrace.cli.operator.admin import run_module  # noqa: PLC0415 - brings SQLAlchemy, which help does not need

    run_module(module, *arguments)
