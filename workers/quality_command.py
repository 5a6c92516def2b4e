"""``python -m headrace.workers.quality_command NAME@VERSION``: measures the quality of a version on this machine.

A report over the texts of Headrace against the version's own reference is stored with it; others are only printed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from headrace.models.engine.requests import EngineError
from headrace.prompts.tasks.task_inputs import ReadFile
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, HeadraceError, InvalidRequest
from headrace.store.registry.engine_spec import EngineKind
from headrace.store.registry.models import ModelVersion, queue_name, read_file, resolve
from headrace.store.registry.quality_bounds import keep_report
from headrace.store.registry.quality_report import QualityReport
from headrace.store.registry.quality_view import report_rows
from headrace.store.settings import Settings, load_settings, require_services
from headrace.workers.quality import Loaded, read_reference, reference_of, report_of
from headrace.workers.tasks.generate_external import NO_SERVER, load_external_model
from headrace.workers.tasks.registry import loader_of
from headrace.workers.tasks.task_model import TaskModel

_MAX_TEXTS = 1000


def read_texts_file(path: Path) -> tuple[str, ...]:
    """Return the texts of a JSONL file. Raises InvalidRequest, which names the line."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", param="texts") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str) or len(text.split()) < 2:
            wanted = 'a JSON object {"text": "..."} with two words or more'
            raise InvalidRequest(f"{path}, line {number}: each line is {wanted}", param="texts")
        texts.append(text)
    if not 0 < len(texts) <= _MAX_TEXTS:
        raise InvalidRequest(f"{path} has {len(texts)} texts: give 1 to {_MAX_TEXTS}", param="texts")
    return tuple(texts)


def measure(
    db: Database, settings: Settings, name: str, *, against: str | None = None, texts: Sequence[str] = ()
) -> tuple[QualityReport, bool]:
    """Return the report of a version, and whether it was stored. Raises HeadraceError, EngineError."""
    version = resolve(db, name, with_retired=True)
    is_served = version.engine.is_external
    version = _served(version, against) if is_served else _measurable(version)
    if against is None:
        reference_name, original = reference_of(version, partial(resolve, db, with_retired=True))
    else:
        original = _measurable(resolve(db, against, with_retired=True))
        reference_name = queue_name(original.model, original.version)
    tokenizers = {one.files.get("tokenizer.json") for one in (version, original)}
    if len(tokenizers) > 1:
        raise Conflict(f"{reference_name} has another tokenizer than {name}: their tokens cannot be compared")
    reading = partial(read_file, db)
    reference = read_reference(reference_name, original, settings, reading, texts)
    load = load_from_server if is_served else loader_of(version)
    loaded = Loaded.by(lambda: load(version, settings, reading))
    try:
        report = None if reference is None else report_of(loaded, settings, reference)
    finally:
        loaded.model.close()
    if report is None:
        raise Conflict(f"the engine of {name} shows no probabilities: it cannot be measured")
    is_own = (against is None or is_served) and not texts
    return report, is_own and keep_report(db, version.model, version.version, report)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; return the exit code. Errors are one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m headrace.workers.quality_command", description=__doc__)
    parser.add_argument("version", help="name@version or name@alias")
    parser.add_argument("--against", help="the version to compare with; by default what it was quantized from")
    parser.add_argument("--texts", type=Path, help='a JSON object {"text": "..."} on each line')
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        settings = require_services(load_settings())
        texts = () if options.texts is None else read_texts_file(options.texts)
        db = Database(settings.database_url, pool_size=1, application_name="headrace quality")
        try:
            report, is_stored = measure(db, settings, options.version, against=options.against, texts=texts)
        finally:
            db.close()
    except (HeadraceError, EngineError) as error:
        sys.stderr.write(f"headrace: {error}\n")
        return 1
    found = report.model_dump(mode="json")
    if options.json:
        sys.stdout.write(json.dumps(found | {"stored": is_stored}) + "\n")
        return 0
    rows = [("", options.version, report.against), *report_rows(found)]
    lines = [f"{name:<22}{mine:>22}{its:>22}" for name, mine, its in rows]
    lines.append(f"{report.num_tokens} predictions in {report.took_s:.0f} s{'; stored with the version' * is_stored}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def load_from_server(version: ModelVersion, settings: Settings, read_file: ReadFile) -> TaskModel:
    """Return the model of a version on an inference server. Raises as ``load_external_model``."""
    return load_external_model(version, settings, read_file, NO_SERVER)


def _served(version: ModelVersion, against: str | None) -> ModelVersion:
    """Return a version on a server. Raises Conflict if the server takes no tokens, or there is no reference."""
    name = queue_name(version.model, version.version)
    if version.engine.kind is EngineKind.OPENAI:
        raise Conflict(f"{name} is computed by a chat server, which continues no plain text: it cannot be measured")
    if against is None and version.quantized_from is None:
        raise Conflict(f"{name} runs on a server: give --against, the version on Headrace's engine to compare with")
    return version


def _measurable(version: ModelVersion) -> ModelVersion:
    """Return the version. Raises Conflict if Headrace's own engine does not generate text with weights of it."""
    name = queue_name(version.model, version.version)
    if version.engine.is_external:
        raise Conflict(f"{name} is computed by a {version.engine.kind.value} server: its quality is not measured")
    if version.is_fake or version.base is not None or not version.spec.has_sampling:
        raise Conflict(f"{name} is no model with weights of its own that generates text: its quality is not measured")
    return version


if __name__ == "__main__":
    sys.exit(main())
