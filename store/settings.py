"""All settings, read from the environment once at process start. Nothing else reads the environment.

``DATABASE_URL`` and ``REDIS_URL`` keep their usual names; every other setting is ``HEADRACE_<FIELD>``. A variable that
starts with ``HEADRACE_`` and names no setting, or a value that does not parse, stops the process.
"""

import logging
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from headrace.store.errors import SettingsError
from headrace.store.failpoints import parse_failpoints, parse_model_faults
from headrace.store.mcp_commands import check_commands
from headrace.store.scale_bounds import parse_bounds

_PREFIX = "HEADRACE_"
_OTEL = "OTEL_"
_SHORTEST_DIGEST_KEY = 32
# As browsers send it in `Origin`: without a path and without the scheme's own port.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


class Settings(BaseSettings):
    """The process's configuration. Times are in seconds, sizes in bytes unless the name has another unit."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, populate_by_name=True)

    database_url: str = Field("", validation_alias=AliasChoices("DATABASE_URL"))
    redis_url: str = Field("", validation_alias=AliasChoices("REDIS_URL"))
    home: Path = Path(".headrace")
    log_level: str = "INFO"
    environment: Literal["production", "development", "test"] = "production"
    # Faults on purpose, for tests alone: see ``store.failpoints``.
    failpoints: str = ""
    model_faults: str = ""

    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=0, le=65535)
    # Where the client verbs find a server, and the key they show it; by default those of the stack in ``home``.
    api_url: str = ""
    api_key: str = Field("", repr=False)
    # Pages that need no key, beside /healthz and /readyz: /docs with /openapi.json, /metrics, /version, and /console,
    # which asks for a key itself. Without `metrics`, /metrics answers callers of the same machine alone.
    open_pages: Annotated[tuple[Literal["console", "docs", "metrics", "version"], ...], NoDecode] = (
        "console",
        "docs",
        "version",
    )
    # Proxies in front of the API, as addresses or networks: of their connections alone `X-Forwarded-For` is believed.
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    # Origins of web pages that may call the API from a browser, as `https://chat.example.com`; `*` is any. No cookie is
    # ever accepted, so such a page must have a key.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    max_body_bytes: int = Field(1 << 20, ge=1024)
    # Of the URLs of text encoders, whose inputs are bounded by their tokens.
    max_embedding_body_bytes: int = Field(8 << 20, ge=1024)
    max_wait_s: float = Field(60.0, ge=0)
    sync_timeout_s: float = Field(300.0, gt=0)
    stream_ping_s: float = Field(15.0, gt=0)
    # Where lists and the console read, such as a replica, as the user of DATABASE_URL; empty: DATABASE_URL.
    lists_database_url: str = Field("", repr=False)
    # Postgres gives up on the query of a list that takes longer.
    list_timeout_s: float = Field(2.0, gt=0)

    # Of each key, where the operator has set nothing else. All other limits are set for a tenant or a key.
    requests_per_minute: int = Field(6000, ge=1)
    tokens_per_minute: int = Field(2_000_000, ge=1)
    # Streams and waits that are open at one API process.
    key_concurrent_streams: int | None = Field(1000, ge=0)
    # Of a tenant: batches that have not ended, because each of them is polled until it ends.
    tenant_live_batches: int | None = Field(100, ge=0)
    max_queued_jobs: int = Field(1_000_000, ge=1)
    max_queued_jobs_per_tenant: int = Field(100_000, ge=1)
    # Prompt and max_tokens of the queued jobs together.
    max_queued_tokens: int = Field(2_000_000_000, ge=1)
    max_queued_tokens_per_tenant: int = Field(200_000_000, ge=1)

    max_steps: int = Field(16, ge=1, le=256)

    # Whether a request for a model version that no worker serves is refused with 503 `no_worker`; else it is accepted,
    # and the answer warns that the job waits.
    require_worker: bool = False

    default_max_attempts: int = Field(3, ge=1, le=100)
    default_deadline_s: float = Field(3600.0, gt=0)
    idempotency_ttl_s: float = Field(86_400.0, gt=0)
    # Whether equal requests of a tenant with one possible answer are computed once: "asked" if the request says
    # `Headrace-Cache: use`, "on" unless it says `bypass`. An answer is used for so long, at most until its job's
    # contents are deleted.
    response_cache: Literal["off", "asked", "on"] = "off"
    response_cache_ttl_s: float = Field(3600.0, gt=0)
    # When work starts that asks for cheap hours: `22:00-06:00 Europe/Zurich`, `SAT-SUN 00:00-24:00 UTC`, with commas.
    cheap_hours: Annotated[tuple[str, ...], NoDecode] = ()

    # How long contents are kept after a job has ended (files: after they came), where the operator has set nothing else
    # for a tenant: outputs, inputs (unset: as long as outputs), webhook deliveries, files (unset: until they are
    # deleted). At last the emptied row of the job is deleted.
    result_ttl_s: float = Field(7 * 86_400.0, ge=0)
    input_ttl_s: float | None = Field(None, ge=0)
    delivery_ttl_s: float = Field(30 * 86_400.0, ge=0)
    file_ttl_s: float | None = Field(None, ge=0)
    record_ttl_s: float = Field(30 * 86_400.0, gt=0)

    ready_window: int = Field(256, ge=1)
    # One of every eight turns goes to a job that has waited longer than this, whatever its class.
    ageing_s: float = Field(60.0, ge=0)
    lease_s: float = Field(10.0, gt=0)
    sweep_s: float = Field(2.0, gt=0)
    reannounce_s: float = Field(10.0, gt=0)
    # A worker that hears nothing from Redis for this long, while jobs wait, claims them from Postgres.
    direct_after_s: float = Field(3.0, gt=0)
    stream_ttl_s: int = Field(600, ge=1)

    drain_s: float = Field(5.0, gt=0)
    max_step_s: float = Field(60.0, gt=0)
    max_slots: int = Field(32, ge=1)
    # The LoRA adapters that a worker keeps in memory.
    max_adapters: int = Field(8, ge=1)
    step_tokens: int = Field(512, ge=1)
    # An encoder's: inputs of about so many tokens are planned together. They are computed in passes of about so many
    # milliseconds, with a check for cancelled and new jobs after each; "inf": only the tokens limit a pass.
    encode_tokens: int = Field(4096, ge=1)
    encode_pass_ms: float = Field(50.0, gt=0)
    encode_gives_way: bool = False  # to every other thread of the machine, see ``models.engine.give_way``
    # A transcriber's: so many chunks of audio, of 30 s at most, are computed together between two such checks.
    transcribe_chunks: int = Field(4, ge=1)
    # Prompts make a step that has streams to feed at most so many times as long; "inf" puts no bound to it.
    stretch: float = Field(1.8, gt=1)
    # A worker shows about so many pieces of text a second, all streams together: among many they are fewer and longer;
    # "inf": each token is a piece.
    stream_deltas_per_s: float = Field(300, gt=0)
    # auto: prompt lookup proposes next tokens, which are verified where there is compute to spare.
    speculation: Literal["auto", "off"] = "auto"
    kv_block_tokens: int = Field(16, ge=1)
    # auto: half of the free memory beside the weights, within the control group's limit. On a GPU auto is the default.
    kv_pool_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = 16_384
    device: str = "auto"
    # The share of a GPU's memory that a worker uses, if the pool is auto: weights, a pass, the rest for the pool.
    gpu_memory_share: float = Field(0.9, gt=0, le=1)
    # auto: a GPU replays decode passes that were recorded for fixed numbers of rows; off: it gets each kernel anew.
    decode_graphs: Literal["auto", "off"] = "auto"
    dtype: str = "auto"
    torch_threads: int = Field(0, ge=0)
    # auto: the CPU kernels, compiled once, where there is a compiler and the model is one of theirs; off: torch alone.
    native_kernels: Literal["auto", "off"] = "auto"
    # What a worker shows an inference server that asks for a key (``Authorization: Bearer``).
    engine_api_key: str = Field("", repr=False)
    # The Python of an environment with the inference server, for workers that start one; unset: the environment that
    # `headrace up --engine` makes in home.
    engine_python: Path | None = None
    fake_step_ms: float = Field(2.0, ge=0)
    # What a worker does at Celery's remote commands: "read" answers Flower and changes nothing, "off" does not listen,
    # "full" runs every command of every Redis client.
    celery_control: Literal["off", "read", "full"] = "read"
    # Where the pages of a worker and of the dispatcher listen; a Prometheus or a probe on another host needs 0.0.0.0.
    health_host: str = "127.0.0.1"
    # 0: a dispatcher serves no health page.
    dispatcher_port: int = Field(0, ge=0, le=65535)
    # 0: a model host serves no health page.
    host_port: int = Field(0, ge=0, le=65535)
    # A version keeps its place on a model host for ``host_residence_s`` at least, and for ``host_turn_s`` while it has
    # jobs and others wait; for longer where its load takes long. Swaps take this share of a place's time at most.
    host_residence_s: float = Field(10.0, ge=0)
    host_turn_s: float = Field(60.0, gt=0)
    host_swap_share: float = Field(0.5, gt=0, le=1)
    # How many workers a model should have, decided by what waits: NAME=0..4, with commas; unset: nothing is decided.
    # Standard jobs should wait for no longer than ``autoscale_wait_s``, interactive ones a quarter, batches 20 times as
    # long. A number falls after the cool-down, and the last worker leaves after so long without jobs.
    autoscale: Annotated[tuple[str, ...], NoDecode] = ()
    autoscale_wait_s: float = Field(20.0, gt=0)
    autoscale_cool_down_s: float = Field(60.0, ge=0)
    autoscale_zero_after_s: float = Field(300.0, ge=0)
    # A worker that a model host drains because fewer are wanted ends its running jobs within this time.
    autoscale_drain_s: float = Field(3600.0, gt=0)
    # 0: a worker serves no metrics.
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    # So many tenants, those with most queued tokens, have a series of their own in the metrics; each is a label value.
    metrics_tenants: int = Field(0, ge=0, le=100)

    # The folder of a spaCy pipeline, by which policies find names with the extra ``presidio``.
    names_model: str = ""

    # Where files lie, for every API process the same: a folder ("" is ``files`` in home) or s3://bucket/prefix.
    files_url: str = ""
    max_file_bytes: int = Field(512 << 20, ge=1024)
    # Of audio that comes with a request for its transcript; longer audio comes as a file. The duration is of any.
    max_audio_bytes: int = Field(25 << 20, ge=1024)
    max_audio_s: float = Field(7200.0, gt=0)
    # What a tenant's files may have together; what batches put out counts, and is never refused.
    tenant_stored_bytes: int = Field(100 << 30, ge=1024)
    # The model that makes the vectors of a vector store whose creator names none; empty: the only model that embeds.
    retrieval_model: str = ""
    # What reads PDF and office files for vector stores; "docling" needs the extra of this name beside the workers.
    document_reader: Literal["standard", "docling"] = "standard"
    # Batches are kept and files removed by one of the API processes that may; "off" leaves that to the others.
    keep_batches: Literal["on", "off"] = "on"
    max_batch_lines: int = Field(1_000_000, ge=1)
    # Lines of all batches together that are jobs and have not ended; more for versions with more than half the slots.
    batch_lines_under_way: int = Field(1024, ge=1)
    # Of a worker's slots, what jobs of the batch class may have.
    batch_share: float = Field(0.75, gt=0, le=1)

    # Signs the heads of the audit log that are printed and logged; "" leaves them unsigned.
    audit_head_key: str = Field("", repr=False)

    # "on" refuses to connect to Postgres or Redis on another host without a verified certificate; "off" warns.
    require_tls: Literal["on", "off"] = "off"
    # Passwords that `python -m headrace.migrations roles` sets for the database roles; nothing else reads them.
    api_database_password: str = Field("", repr=False)
    worker_database_password: str = Field("", repr=False)
    operator_database_password: str = Field("", repr=False)
    # "required": the API refuses to start if row-level security does not bind its database user; "off": it warns.
    row_security: Literal["required", "off"] = "required"

    flower_host: str = "127.0.0.1"
    flower_port: int = Field(5555, ge=1, le=65535)
    flower_basic_auth: str = Field("", repr=False)

    # Payload columns, streams and files are sealed if there are keys: ID:BASE64,…; the first seals, all open. The file
    # has the same, one a line.
    encryption_keys: str = Field("", repr=False)
    encryption_key_file: Path | None = None
    # By digests with these keys requests are known again when they are repeated: texts of 32 characters or more. The
    # first makes digests, all recognise. Keys derived from those of encryption recognise too, and make them if this is
    # empty.
    digest_keys: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)

    webhook_allow_http: bool = False
    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()
    webhook_concurrency: int = Field(16, ge=1)
    webhook_timeout_s: float = Field(15.0, gt=0)
    # An endpoint to which nothing could be delivered for so long is disabled.
    webhook_disable_after_s: float = Field(5 * 86_400.0, gt=0)

    # Servers of MCP over stdio that tenants may register by name, for the API and the workers of `call_tool`: JSON, as
    # {"clock": ["/usr/bin/clock-mcp", "--utc"]}. An argument may be a secret.
    mcp_commands: Annotated[str, AfterValidator(check_commands)] = Field("", repr=False)

    # Shadow mode of rollouts, by ids of tenants: the one that owns the copies of jobs, and those whose jobs may be
    # copied; ``*`` is every tenant. Without them there is no shadow mode.
    shadow_tenant: str = ""
    shadow_sources: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator(
        "webhook_allow_networks",
        "open_pages",
        "trusted_proxies",
        "digest_keys",
        "cors_origins",
        "shadow_sources",
        "autoscale",
        "cheap_hours",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level")
    @classmethod
    def _is_a_level(cls, value: str) -> str:
        if value.upper() not in logging.getLevelNamesMapping():
            raise ValueError("one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
        return value

    @field_validator("autoscale")
    @classmethod
    def _are_bounds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_bounds(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ip_network(one)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not _ORIGIN.fullmatch(one):
                raise ValueError(f"{one!r} is no origin: write scheme://host or scheme://host:port in lower case, or *")
        if "*" in value and len(value) > 1:
            raise ValueError("`*` is every origin: give it alone")
        return value

    @field_validator("digest_keys")
    @classmethod
    def _are_long(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(key) < _SHORTEST_DIGEST_KEY for key in value):
            raise ValueError(f"a key has at least {_SHORTEST_DIGEST_KEY} characters: `openssl rand -hex 32` makes one")
        return value

    @field_validator("failpoints", "model_faults")
    @classmethod
    def _only_in_tests(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("environment") != "test":
            raise ValueError("faults are made on purpose only with HEADRACE_ENVIRONMENT=test")
        {"failpoints": parse_failpoints, "model_faults": parse_model_faults}[str(info.field_name)](value)
        return value


# No error shows the values of these settings.
_SECRET = frozenset(name for name, field in Settings.model_fields.items() if not field.repr)


def load_settings() -> Settings:
    """Read the environment. Raises SettingsError with one sentence that names an unknown or malformed variable."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}: remove it or correct its name")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        variable = name if name.isupper() else _PREFIX + name.upper()
        said = first["msg"].removeprefix("Value error, ")
        if name in _SECRET:
            # From None: the cause shows the value.
            raise SettingsError(f"{variable}: {said}") from None
        raise SettingsError(f"{variable}: {said} (got {first['input']!r})") from error


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with ``changes``, for a process that it starts."""
    return {**os.environ, **changes}


def adopt_environment(changes: Mapping[str, str]) -> None:
    """Set variables of this process's environment, for a program that it becomes."""
    os.environ.update(changes)


def runtime_folder() -> Path:
    """Return the folder for this user's runtime files, which last until the machine restarts; it may not exist."""
    given = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    return given if given.is_absolute() else Path("/run/user") / str(os.geteuid())


def redis_environment() -> dict[str, str]:
    """Return this process's environment for a program that reads only Redis, without the secrets of other services."""
    others = ("DATABASE_URL", "HEADRACE_", "PG", "AWS_", _OTEL)
    kept = {_PREFIX + name.upper() for name in _OF_REDIS}
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(others)}


def otel_environment() -> dict[str, str]:
    """Return OpenTelemetry's standard variables: see ``store.tracing.otel_settings``."""
    return {name: value for name, value in os.environ.items() if name.startswith(_OTEL)}


def environment_of_others() -> dict[str, str]:
    """Return this process's environment for a program that is not Headrace, without addresses and secrets of ours."""
    ours = ("DATABASE_URL", "REDIS_URL", _PREFIX, "PG")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def bare_environment(*names: str) -> dict[str, str]:
    """Return what a program of a sandbox needs of this process's environment, and the variables of these names.

    No other variable: it may be a secret, also one of a library.
    """
    kept = {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", *names}
    return {name: value for name, value in os.environ.items() if name in kept or name.startswith("LC_")}


_OF_REDIS = ("environment", "home", "log_level", "require_tls", "flower_host", "flower_port", "flower_basic_auth")


def require_services(settings: Settings, *, only_redis: bool = False) -> Settings:
    """Return ``settings`` if both service addresses are given (with ``only_redis``: that of Redis); otherwise raise
    SettingsError with the remedy."""
    for name, value in (("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url)):
        if not value and not (only_redis and name == "DATABASE_URL"):
            raise SettingsError(f"{name} is not set: export it, or use `headrace up`, which starts its own services")
    return settings
