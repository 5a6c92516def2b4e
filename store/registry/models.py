"""The model registry: names, immutable versions, movable aliases, and the small files that the API needs.

It resolves model strings (``name``, ``name@3``, ``name@alias``) and names queues. It stores no weights.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from headrace.store.audit_log import record
from headrace.store.db.database import Database
from headrace.store.errors import Conflict, InvalidRequest, NotFound
from headrace.store.json_text import dump_json
from headrace.store.payloads.prompt_reference import DefaultTemplate
from headrace.store.payloads.sampling_params import SamplingDefaults
from headrace.store.registry import registration_queries
from headrace.store.registry.engine_spec import EXTERNAL_KINDS, NATIVE, EngineKind, EngineSpec
from headrace.store.registry.verification_report import GoldenAnswer, stored_golden
from headrace.store.schema.model_tables import model_versions
from headrace.store.schema.version_states import STATE_SQL, VersionState
from headrace.store.tasks.registry import FAKE_RUNNERS, TASK_OF_RUNNER, known_task
from headrace.store.tasks.task_spec import TaskSpec

DEFAULT_ALIAS = "default"

# A model name is not used as a path. If it were, it could not leave a folder.
_NAME = re.compile(r"(?!.*(?:\.\.|//|/\.|/$))[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One immutable version. ``files`` maps the name of a file to its digest for ``read_file``.

    ``task``: the name of the task of its jobs. ``sampling``: defaults set by the operator. They may change; accepted
    jobs keep their values. ``engine``: what runs the version; its address may change too. ``state``: when it was read.
    ``base_model`` and ``base_version``: the version that a LoRA adapter changes. ``source`` and ``digest`` are the
    adapter's then, and all else is as the base has it. A base of the same model: the version shares its weights, and
    differs in its ``template``, the messages that come before those of a request without a template of its own.
    ``is_divided``: the alias that it was found by has an active rollout.
    ``quantized_from``: of a quantized version, the version, ``name@3``, whose files it has in another number format.
    """

    model: str
    version: int
    task: str
    runner: str
    source: str
    digest: str
    dtype: str
    context_window: int
    files: dict[str, str]
    created_at: datetime
    retired_at: datetime | None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    engine: EngineSpec = NATIVE
    state: VersionState = VersionState.READY
    state_reason: str | None = None
    base_model: str | None = None
    base_version: int | None = None
    quantized_from: str | None = None
    template: DefaultTemplate | None = None
    is_divided: bool = False

    @property
    def name(self) -> str:
        """``name@3``."""
        return queue_name(self.model, self.version)

    @property
    def base(self) -> str | None:
        """The version whose workers run this one, as ``name@3``; None: it has weights of its own."""
        if self.base_model is None or self.base_version is None:
            return None
        return queue_name(self.base_model, self.base_version)

    @property
    def shares_weights(self) -> bool:
        """True if the version is its base with another default template; a LoRA adapter has another model's base."""
        return self.base_model == self.model

    @property
    def spec(self) -> TaskSpec:
        """The task of the jobs that this version runs. Raises CannotLoadHere if its package is not installed here."""
        return known_task(self.task)

    @property
    def is_fake(self) -> bool:
        """True if the version has no weights and no files."""
        return self.runner in FAKE_RUNNERS

    @property
    def is_without_tokenizer(self) -> bool:
        """True if tokens are only estimated: the engine is an OpenAI-compatible server, registered without files."""
        return self.engine.kind is EngineKind.OPENAI and "tokenizer.json" not in self.files


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """A model with its aliases and the versions that can be used, newest first.

    ``engines``: the kind of engine of those versions with another than Headrace's own. ``bases``: the bases of those
    that are LoRA adapters, as ``name@3``. ``context_windows``: of every version, in tokens.
    """

    name: str
    task: str
    created_at: datetime
    aliases: dict[str, int]
    versions: list[int]
    engines: dict[int, str]
    bases: dict[int, str]
    context_windows: dict[int, int]


# Until it has its own, a version has the sampling defaults of the one whose weights it shares, and a quantized version
# those of the one that it was made from.
_DEFAULTS = """(
    SELECT made.model, made.version, COALESCE(own.sampling, shared.sampling, source.sampling) AS sampling
    FROM model_versions AS made LEFT JOIN model_sampling AS own USING (model, version)
    LEFT JOIN model_sampling AS shared
        ON made.base_model = made.model AND (shared.model, shared.version) = (made.base_model, made.base_version)
    LEFT JOIN model_sampling AS source ON source.model || '@' || source.version = made.quantized_from) AS defaults"""

# By name, because Postgres refuses a prepared statement with ``*`` after a revision has added a column.
_COLUMNS = f"""{", ".join(f"model_versions.{column.name}" for column in model_versions.columns)},
    defaults.sampling, {STATE_SQL} AS shown_state"""
_FROM = f"model_versions LEFT JOIN {_DEFAULTS} USING (model, version)"
_SELECT = f"SELECT {_COLUMNS} FROM {_FROM}"

# The version that a model string names, and whether a rollout divides the jobs of its alias.
_RESOLVE = text(f"""
SELECT {_COLUMNS}, EXISTS (
    SELECT FROM rollouts WHERE rollouts.model = aliases.model AND rollouts.alias = aliases.alias
        AND rollouts.state IN ('running', 'paused')
) AS is_divided
FROM {_FROM} LEFT JOIN aliases ON aliases.model = model_versions.model AND aliases.alias = :reference
WHERE model_versions.model = :model AND (model_versions.retired_at IS NULL OR :with_retired)
    AND model_versions.version = COALESCE(aliases.version, CAST(:number AS int))
""")

_SET_SAMPLING = text("""
INSERT INTO model_sampling (model, version, sampling) VALUES (:model, :version, CAST(:sampling AS jsonb))
ON CONFLICT (model, version) DO UPDATE SET sampling = excluded.sampling, updated_at = now()
""")

# Sets an alias.
_POINT = text("""
INSERT INTO aliases (model, alias, version) VALUES (:model, :alias, :version)
ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version, updated_at = now()
""")

_CREATE_ALIAS = text("""
INSERT INTO aliases (model, alias, version) VALUES (:model, :alias, :version) ON CONFLICT (model, alias) DO NOTHING
""")


def queue_name(model: str, version: int) -> str:
    """Return the Celery queue of a model version."""
    return f"{model}@{version}"


def shadow_name(task: str, model: str, version: int) -> str:
    """Return the name under which a job's Celery task is shown."""
    return f"{task}:{model}@{version}"


def register_version(
    db: Database,
    *,
    model: str,
    runner: str,
    source: str,
    digest: str,
    dtype: str,
    context_window: int,
    actor: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
    kept_files: Mapping[str, str] = MappingProxyType({}),
    engine: EngineSpec = NATIVE,
    golden: Sequence[GoldenAnswer] = (),
    base: ModelVersion | None = None,
    quantized_from: str | None = None,
    template: DefaultTemplate | None = None,
    tenant_id: str | None = None,
) -> ModelVersion:
    """Add a version, or return the one with this digest, dtype, base and template. The first one gets the alias
    ``default``. If the model has a version that differs in the template alone, the new one shares its weights.

    ``runner`` is the kind of the ``engine`` if that is an inference server. Such a version that is there already gets
    the engine's address. A new version is ``registered`` until a worker has verified it; one without weights has
    nothing to verify and is ``ready``, and so is an adapter, whose tensors the caller has compared with its base. A
    version that was rejected is verified again. ``golden``: answers that the verification must find. ``base``: the
    version that a LoRA adapter changes. ``quantized_from``: as in ``ModelVersion``. ``kept_files``: digests of files
    that the registry has. ``tenant_id``: the actor's tenant, for the audit log. Raises InvalidRequest, and Conflict for
    golden answers of a version that is ready, for a base that is retired, and for weights that are not verified.
    """
    _require_valid(model, runner, engine)
    digests = {**kept_files, **{name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    task = TASK_OF_RUNNER[runner].name
    values = {"model": model, "runner": runner, "source": source, "digest": digest, "dtype": dtype}
    same = {"template_digest": None if template is None else template.digest}
    of_base = {"base_model": base and base.model, "base_version": base and base.version}
    with db.begin(tenant_id=tenant_id) as connection:
        if base is not None and connection.execute(registration_queries.KEEP_BASE, of_base).scalar_one() is not None:
            raise Conflict(f"the base {queue_name(base.model, base.version)} is retired", code="version_in_use")
        _lock_model(connection, model, task)
        version = connection.execute(registration_queries.SAME_VERSION, values | same | of_base).scalar_one_or_none()
        if version is None:
            base = base or _same_weights(connection, values)
            of_base = {"base_model": base and base.model, "base_version": base and base.version}
            state = VersionState.READY if runner in FAKE_RUNNERS or base is not None else VersionState.REGISTERED
            row = values | of_base | {"context_window": context_window, "files": dump_json(digests), "task": task}
            row |= {"engine": _stored(engine), "state": state, "golden": stored_golden(golden)}
            row |= {"quantized_from": quantized_from}
            row |= {"template": None if template is None else template.model_dump_json(exclude_none=True)}
            audited = values | {"context_window": context_window, "files": digests} | engine.audited
            audited |= {} if base is None else {"base": queue_name(base.model, base.version)}
            audited |= {} if quantized_from is None else {"quantized_from": quantized_from}
            audited |= {} if template is None else {"template": template.use.model_dump(mode="json")}
            contents = {digests[name]: content for name, content in files.items()}
            version = _insert_version(connection, row, contents, audited, actor, tenant_id)
        else:
            _verify_again(connection, model, version, golden)
        found = version_of(connection, model, version)
        return found if found.engine == engine else _set_engine(connection, found, engine, actor, tenant_id)


def _require_valid(model: str, runner: str, engine: EngineSpec) -> None:
    if engine.is_external != (runner in EXTERNAL_KINDS) or (engine.is_external and engine.kind != runner):
        raise InvalidRequest(f"the engine {engine.kind.value} does not run a version of the kind {runner}")
    if not _NAME.fullmatch(model):
        raise InvalidRequest(f"a model name is letters, digits and . _ / -, and no path, not {model!r}", param="model")


def _insert_version(
    connection: Connection,
    row: Mapping[str, Any],
    contents: Mapping[str, bytes],
    audited: dict[str, Any],
    actor: str,
    tenant_id: str | None,
) -> int:
    """Add the next version with its files, and return its number. ``contents``: of its files, by digest."""
    if contents:
        values = {"digests": list(contents), "contents": list(contents.values())}
        connection.execute(registration_queries.INSERT_FILES, values)
    version: int = connection.execute(registration_queries.INSERT_VERSION, row).scalar_one()
    name = queue_name(row["model"], version)
    record(connection, tenant_id, actor, "model.registered", name, {"digest": row["digest"]}, after=audited)
    if version == 1:
        point(connection, row["model"], DEFAULT_ALIAS, version)
    return version


def _same_weights(connection: Connection, values: Mapping[str, Any]) -> ModelVersion | None:
    """Return the version whose weights a new one shares, None if there is none. Raises Conflict if it is not ready."""
    number = connection.execute(registration_queries.SAME_WEIGHTS, values).scalar_one_or_none()
    if number is None:
        return None
    found = version_of(connection, values["model"], number)
    if found.state is not VersionState.READY:
        raise Conflict(
            f"{found.name} has these weights and is {found.state.value}: let a worker verify it first, "
            f"`headrace worker --model {found.name}`",
            code="version_not_ready",
        )
    return found


def _verify_again(connection: Connection, model: str, version: int, golden: Sequence[GoldenAnswer]) -> None:
    """Let a rejected version be verified again. Raises Conflict for golden answers of one that is verified."""
    again = {"model": model, "version": version, "golden": stored_golden(golden)}
    is_again = connection.execute(registration_queries.VERIFY_AGAIN, again).rowcount > 0
    if golden and not is_again and not connection.execute(registration_queries.HAS_GOLDEN, again).scalar_one():
        name = queue_name(model, version)
        raise Conflict(f"{name} is verified already: golden answers are given with its first registration")


def _set_engine(
    connection: Connection, version: ModelVersion, engine: EngineSpec, actor: str, tenant_id: str | None
) -> ModelVersion:
    """Set the engine of a version that has the same digest, so only the engine's address is another."""
    values = {"model": version.model, "version": version.version, "engine": _stored(engine)}
    connection.execute(registration_queries.SET_ENGINE, values)
    name = queue_name(version.model, version.version)
    before, after = version.engine.audited, engine.audited
    record(
        connection, tenant_id, actor, "model.engine_set", name, {"url": engine.url or ""}, before=before, after=after
    )
    return replace(version, engine=engine)


def _stored(engine: EngineSpec) -> str | None:
    return dump_json(engine.model_dump(mode="json", exclude_none=True)) if engine.is_external else None


def _lock_model(connection: Connection, model: str, task: str) -> None:
    """Add the model if it is new, and lock its row, so that version numbers are assigned one at a time."""
    connection.execute(registration_queries.INSERT_MODEL, {"name": model, "task": task})
    known = connection.execute(registration_queries.LOCK_MODEL, {"name": model}).scalar_one()
    if known != task:
        raise InvalidRequest(f"model {model} is for the task {known}, not {task}", param="task")


def resolve(db: Database, name: str, *, with_retired: bool = False) -> ModelVersion:
    """Return the version that a model string names. Raises NotFound, which lists the known names.

    ``with_retired``: a retired version is found by its number; a worker may run the jobs that it still has.
    """
    model, sign, reference = name.partition("@")
    number = int(reference) if reference.isascii() and reference.isdecimal() and len(reference) < 10 else None
    values = {"model": model, "reference": reference if sign else DEFAULT_ALIAS, "number": number}
    values["with_retired"] = with_retired
    with db.autocommit() as connection:
        row = connection.execute(_RESOLVE, values).mappings().one_or_none()
        if row is None:
            raise _unknown(connection, name)
    return _read_version(row)


def list_models(db: Database) -> list[ModelSummary]:
    """Return all models, by name."""
    with db.autocommit() as connection:
        rows = connection.execute(registration_queries.LIST_MODELS).mappings().all()
    by_version = ("engines", "bases", "context_windows")
    return [
        ModelSummary(**{**row, **{name: {int(key): value for key, value in row[name].items()} for name in by_version}})
        for row in rows
    ]


def get_version(db: Database, model: str, version: int) -> ModelVersion:
    """Return one version, retired or not. Raises NotFound if it never existed."""
    with db.autocommit() as connection:
        return version_of(connection, model, version)


def list_adapters(db: Database, base: ModelVersion) -> list[ModelVersion]:
    """Return the LoRA adapters of a version, retired ones too: they may have jobs."""
    statement = text(f"{_SELECT} WHERE base_model = :model AND base_version = :version ORDER BY model, version")
    with db.autocommit() as connection:
        rows = connection.execute(statement, {"model": base.model, "version": base.version}).mappings().all()
    return [_read_version(row) for row in rows]


def set_sampling(db: Database, model: str, version: int, sampling: SamplingDefaults, actor: str) -> ModelVersion:
    """Set a version's sampling defaults, and return it. Raises NotFound.

    They replace the former ones, and apply to jobs that are accepted from now on.
    """
    after = sampling.given()
    with db.begin() as connection:
        before = version_of(connection, model, version).sampling.given()
        connection.execute(_SET_SAMPLING, {"model": model, "version": version, "sampling": dump_json(after)})
        name = queue_name(model, version)
        # As texts, because the canonical form of the audit log has no fractions.
        detail = {field: str(value) for field, value in after.items()}
        record(connection, None, actor, "model.sampling_set", name, detail, before=before, after=after)
        return version_of(connection, model, version)


def point(connection: Connection, model: str, alias: str, version: int) -> None:
    """Set an alias, without a check and without a row in the audit log."""
    connection.execute(_POINT, {"model": model, "alias": alias, "version": version})


def create_alias(connection: Connection, model: str, alias: str, version: int) -> bool:
    """Create an alias as ``point`` does; return False if it exists, also since a moment ago."""
    values = {"model": model, "alias": alias, "version": version}
    return connection.execute(_CREATE_ALIAS, values).rowcount == 1


def read_file(db: Database, digest: str) -> bytes:
    """Return a stored file. Raises NotFound if no file has this digest."""
    with db.autocommit() as connection:
        content = connection.execute(
            text("SELECT content FROM model_files WHERE digest = :digest"), {"digest": digest}
        ).scalar_one_or_none()
    if content is None:
        raise NotFound(f"no model file {digest}")
    return bytes(content)


def version_of(connection: Connection, model: str, version: int) -> ModelVersion:
    """Return one version, retired or not. Raises NotFound."""
    statement = text(f"{_SELECT} WHERE model = :model AND version = :version")
    row = connection.execute(statement, {"model": model, "version": version}).mappings().one_or_none()
    if row is None:
        raise _unknown(connection, queue_name(model, version))
    return _read_version(row)


# Only known columns: a later release may add columns.
_FIELDS = tuple(one.name for one in fields(ModelVersion))
_CONVERTED = frozenset({"sampling", "engine", "state", "template", "is_divided"})


def _read_version(row: RowMapping) -> ModelVersion:
    known = {name: row[name] for name in _FIELDS if name not in _CONVERTED}
    known["is_divided"] = row.get("is_divided", False)
    known["state"] = VersionState(row["shown_state"])
    engine = NATIVE if row["engine"] is None else EngineSpec.model_validate(row["engine"])
    known["template"] = None if row["template"] is None else DefaultTemplate.model_validate(row["template"])
    return ModelVersion(**known, sampling=SamplingDefaults.model_validate(row["sampling"] or {}), engine=engine)


def _unknown(connection: Connection, name: str) -> NotFound:
    known = connection.execute(text("SELECT name FROM models ORDER BY name")).scalars().all()
    names = ", ".join(known) if known else "none is registered"
    return NotFound(f"no model {name!r}; known: {names}", code="model_not_found", param="model")
