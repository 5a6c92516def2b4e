"""The promises of settings: their defaults and bounds, what a child process gets, and what errors say and hide."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from headrace.store.errors import SettingsError
from headrace.store.settings import (
    Settings,
    adopt_environment,
    bare_environment,
    child_environment,
    environment_of_others,
    load_settings,
    otel_environment,
    redis_environment,
    require_services,
    runtime_folder,
)

DEFAULTS: dict[str, Any] = {
    "database_url": "",
    "redis_url": "",
    "home": Path(".headrace"),
    "log_level": "INFO",
    "environment": "production",
    "failpoints": "",
    "model_faults": "",
    "api_host": "127.0.0.1",
    "api_port": 8000,
    "api_url": "",
    "api_key": "",
    "api_threads": 96,
    "open_pages": ("console", "docs", "version"),
    "trusted_proxies": (),
    "cors_origins": (),
    "max_body_bytes": 1048576,
    "max_embedding_body_bytes": 8388608,
    "max_wait_s": 60.0,
    "sync_timeout_s": 300.0,
    "stream_ping_s": 15.0,
    "list_timeout_s": 2.0,
    "requests_per_minute": 6000,
    "tokens_per_minute": 2000000,
    "key_concurrent_jobs": None,
    "key_queued_tokens": None,
    "key_monthly_cost": None,
    "key_live_batches": None,
    "tenant_requests_per_minute": None,
    "tenant_tokens_per_minute": None,
    "tenant_concurrent_jobs": None,
    "key_concurrent_streams": 1000,
    "tenant_concurrent_streams": None,
    "tenant_monthly_cost": None,
    "tenant_live_batches": 100,
    "max_queued_jobs": 1000000,
    "max_queued_jobs_per_tenant": 100000,
    "max_queued_tokens": 2000000000,
    "max_queued_tokens_per_tenant": 200000000,
    "max_steps": 16,
    "require_worker": False,
    "default_max_attempts": 3,
    "default_deadline_s": 3600.0,
    "idempotency_ttl_s": 86400.0,
    "response_cache": "off",
    "response_cache_ttl_s": 3600.0,
    "response_cache_entries": 100000,
    "result_ttl_s": 604800.0,
    "input_ttl_s": None,
    "delivery_ttl_s": 2592000.0,
    "file_ttl_s": None,
    "record_ttl_s": 2592000.0,
    "ready_window": 256,
    "ageing_s": 60.0,
    "lease_s": 10.0,
    "sweep_s": 2.0,
    "reannounce_s": 10.0,
    "direct_after_s": 3.0,
    "suspect_patience_s": 5.0,
    "stream_ttl_s": 600,
    "stream_max_frames": 16384,
    "drain_s": 5.0,
    "max_step_s": 60.0,
    "max_slots": 32,
    "max_adapters": 8,
    "step_tokens": 512,
    "encode_tokens": 4096,
    "encode_pass_ms": 50.0,
    "encode_gives_way": False,
    "transcribe_chunks": 4,
    "stretch": 1.8,
    "stream_deltas_per_s": 300,
    "speculation": "auto",
    "kv_block_tokens": 16,
    "kv_pool_tokens": 16384,
    "device": "auto",
    "gpu_memory_share": 0.9,
    "decode_graphs": "auto",
    "dtype": "auto",
    "torch_threads": 0,
    "native_kernels": "auto",
    "engine_api_key": "",
    "engine_python": None,
    "fake_step_ms": 2.0,
    "celery_control": "read",
    "health_host": "127.0.0.1",
    "dispatcher_port": 0,
    "host_port": 0,
    "host_residence_s": 10.0,
    "host_turn_s": 60.0,
    "host_swap_share": 0.5,
    "autoscale": (),
    "autoscale_wait_s": 20.0,
    "autoscale_cool_down_s": 60.0,
    "autoscale_zero_after_s": 300.0,
    "autoscale_drain_s": 3600.0,
    "worker_metrics_port": 0,
    "metrics_tenants": 0,
    "names_model": "",
    "files_url": "",
    "max_file_bytes": 536870912,
    "max_audio_bytes": 26214400,
    "max_audio_s": 7200.0,
    "max_audio_channels": 8,
    "min_audio_hz": 8000,
    "max_audio_hz": 192000,
    "audio_ttl_s": 86400.0,
    "tenant_stored_bytes": 107374182400,
    "retrieval_model": "",
    "document_reader": "standard",
    "keep_batches": "on",
    "max_batch_lines": 1000000,
    "batch_lines_under_way": 1024,
    "batch_share": 0.75,
    "audit_head_key": "",
    "audit_head_s": 3600.0,
    "require_tls": "off",
    "api_database_password": "",
    "worker_database_password": "",
    "operator_database_password": "",
    "row_security": "required",
    "flower_host": "127.0.0.1",
    "flower_port": 5555,
    "flower_basic_auth": "",
    "encryption_keys": "",
    "encryption_key_file": None,
    "digest_keys": (),
    "webhook_allow_http": False,
    "webhook_allow_networks": (),
    "webhook_concurrency": 16,
    "webhook_timeout_s": 15.0,
    "webhook_disable_after_s": 432000.0,
    "mcp_commands": "",
    "shadow_tenant": "",
    "shadow_sources": (),
}


def test_a_setting_that_is_not_given_has_its_default() -> None:
    assert {name: Settings.model_fields[name].default for name in DEFAULTS} == DEFAULTS


# The least value, whether it is itself allowed, the greatest value, and the settings that have these bounds.
BOUNDS: list[tuple[float, bool, float | None, str]] = [
    (
        0,
        True,
        65535,
        """
        api_port dispatcher_port host_port worker_metrics_port
        """,
    ),
    (
        4,
        True,
        None,
        """
        api_threads
        """,
    ),
    (
        1024,
        True,
        None,
        """
        max_body_bytes max_embedding_body_bytes max_file_bytes max_audio_bytes tenant_stored_bytes
        """,
    ),
    (
        0,
        True,
        None,
        """
        max_wait_s key_concurrent_jobs key_queued_tokens key_monthly_cost key_live_batches
        tenant_concurrent_jobs key_concurrent_streams tenant_concurrent_streams tenant_monthly_cost
        tenant_live_batches result_ttl_s input_ttl_s delivery_ttl_s file_ttl_s ageing_s
        torch_threads fake_step_ms host_residence_s autoscale_cool_down_s autoscale_zero_after_s
        """,
    ),
    (
        0,
        False,
        None,
        """
        sync_timeout_s stream_ping_s list_timeout_s default_deadline_s idempotency_ttl_s
        response_cache_ttl_s record_ttl_s lease_s sweep_s reannounce_s direct_after_s
        suspect_patience_s drain_s max_step_s encode_pass_ms stream_deltas_per_s host_turn_s
        autoscale_wait_s autoscale_drain_s max_audio_s audio_ttl_s audit_head_s webhook_timeout_s
        webhook_disable_after_s
        """,
    ),
    (
        1,
        True,
        None,
        """
        requests_per_minute tokens_per_minute tenant_requests_per_minute tenant_tokens_per_minute
        max_queued_jobs max_queued_jobs_per_tenant max_queued_tokens max_queued_tokens_per_tenant
        response_cache_entries ready_window stream_ttl_s max_slots max_adapters step_tokens
        encode_tokens transcribe_chunks kv_block_tokens max_audio_channels min_audio_hz max_audio_hz
        max_batch_lines batch_lines_under_way webhook_concurrency
        """,
    ),
    (
        1,
        True,
        256,
        """
        max_steps
        """,
    ),
    (
        1,
        True,
        100,
        """
        default_max_attempts
        """,
    ),
    (
        16,
        True,
        None,
        """
        stream_max_frames
        """,
    ),
    (
        1,
        False,
        None,
        """
        stretch
        """,
    ),
    (
        0,
        False,
        1,
        """
        gpu_memory_share host_swap_share batch_share
        """,
    ),
    (
        0,
        True,
        100,
        """
        metrics_tenants
        """,
    ),
    (
        1,
        True,
        65535,
        """
        flower_port
        """,
    ),
]
CASES = [(name, *bounds) for *bounds, names in BOUNDS for name in names.split()]


def settings_of(**values: Any) -> Settings:
    """Return settings of values as the environment has them."""
    return Settings(**values)


@pytest.mark.parametrize(("name", "least", "is_allowed", "most"), CASES)
def test_a_setting_keeps_its_bounds(name: str, least: float, is_allowed: bool, most: float | None) -> None:
    good = [least] if is_allowed else [least + 1 if most is None else most]
    bad = [least - 1] if is_allowed else [least]
    if most is not None:
        good, bad = [*good, most], [*bad, most + 1]
    for value in good:
        assert getattr(settings_of(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValidationError):
            settings_of(**{name: value})


SECRETS = """api_key engine_api_key audit_head_key api_database_password worker_database_password
    operator_database_password flower_basic_auth encryption_keys digest_keys mcp_commands"""


def test_secrets_are_not_shown() -> None:
    hidden = {name for name, field in Settings.model_fields.items() if not field.repr}
    assert hidden >= set(SECRETS.split())
    assert "s3cr3t" not in repr(Settings(api_key="s3cr3t", audit_head_key="s3cr3t", flower_basic_auth="s3cr3t"))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Nothing of ours but these variables."""
    for name in child_environment({}):
        if name.startswith(("HEADRACE_", "OTEL_", "PG", "AWS_")) or name in ("DATABASE_URL", "REDIS_URL"):
            monkeypatch.delenv(name)
    given = {
        "DATABASE_URL": "postgresql://db",
        "REDIS_URL": "redis://cache",
        "HEADRACE_API_KEY": "s3cr3t",
        "HEADRACE_LOG_LEVEL": "DEBUG",
        "HEADRACE_FLOWER_BASIC_AUTH": "a:b",
        "PGPASSWORD": "s3cr3t",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "OTEL_SERVICE_NAME": "ours",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return given


def test_a_program_gets_no_more_of_the_environment_than_it_needs(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_ours(found: dict[str, str]) -> set[str]:
        return set(found).intersection(environment)

    assert of_ours(redis_environment()) == {"REDIS_URL", "HEADRACE_LOG_LEVEL", "HEADRACE_FLOWER_BASIC_AUTH"}
    assert of_ours(environment_of_others()) == {"AWS_SECRET_ACCESS_KEY", "OTEL_SERVICE_NAME"}
    assert not of_ours(bare_environment())
    assert otel_environment() == {"OTEL_SERVICE_NAME": "ours"}
    ours = child_environment({})
    assert of_ours(ours) == set(environment)
    assert child_environment({"HEADRACE_API_KEY": "other"}) == {**ours, "HEADRACE_API_KEY": "other"}
    assert redis_environment()["PATH"] == environment_of_others()["PATH"] == ours["PATH"]
    monkeypatch.setenv("HEADRACE_HOME", "first")
    adopt_environment({"HEADRACE_HOME": "second"})
    assert child_environment({})["HEADRACE_HOME"] == "second"


def test_runtime_files_lie_in_the_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/mine")
    assert runtime_folder() == Path("/run/mine")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", given)
        assert runtime_folder() == Path(f"/run/user/{os.geteuid()}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LEASE_S", "0", "Input should be greater than 0 (got '0')"),
        ("API_KEYS", "x", None),
        (
            "CORS_ORIGINS",
            "https://A",
            "'https://A' is no origin: write scheme://host or scheme://host:port in lower case, or * (got 'https://A')",
        ),
        (
            "CORS_ORIGINS",
            "https://a,*",
            "`*` is every origin: give it alone (got 'https://a,*')",
        ),
        ("DIGEST_KEYS", "s3cr3t" * 5, "a key has at least 32 characters: `openssl rand -hex 32` makes one"),
        ("ENCRYPTION_KEYS", "k:s3cr3t", "the key k is not base64: make one with `headrace encryption new-key`"),
        ("FAILPOINTS", "x=kill", "faults are made on purpose only with HEADRACE_ENVIRONMENT=test (got 'x=kill')"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_refusal_names_the_variable_and_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str | None
) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    expected = f"unknown setting HEADRACE_{name}: remove it or correct its name"
    assert refused.value.message == (expected if said is None else f"HEADRACE_{name}: {said}")


def test_lists_are_split_and_good_ones_accepted() -> None:
    settings = settings_of(
        cors_origins=" https://a.example.com:8443 ,http://[::1]:80,",
        trusted_proxies="10.0.0.0/8, ::1",
        digest_keys="k" * 32,
        open_pages="docs",
    )
    assert settings.cors_origins == ("https://a.example.com:8443", "http://[::1]:80")
    assert (settings.trusted_proxies, settings.digest_keys) == (("10.0.0.0/8", "::1"), ("k" * 32,))
    assert settings.open_pages == ("docs",)
    assert Settings(cors_origins=("*",)).cors_origins == ("*",)
    for bad in ({"trusted_proxies": ("10.0.0.1/8",)}, {"open_pages": ("index",)}):
        with pytest.raises(ValidationError):
            settings_of(**bad)


def test_a_program_that_reads_only_redis_needs_no_database() -> None:
    settings = Settings(redis_url="redis://cache", database_url="")
    assert require_services(settings, only_redis=True) is settings
    with pytest.raises(SettingsError) as refused:
        require_services(settings)
    said = " is not set: export it, or use `headrace up`, which starts its own services"
    assert refused.value.message == f"DATABASE_URL{said}"
    with pytest.raises(SettingsError, match="REDIS_URL is not set"):
        require_services(Settings(redis_url=""), only_redis=True)
