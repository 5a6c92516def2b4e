"""The promises of settings: their safe defaults and bounds, what a child process gets, and what errors say and hide."""

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
from tests.refusals import Naming

# Without a setting nothing listens outside the machine, is trusted, acts outside or shows a fault.
SAFE: dict[str, Any] = {
    "environment": "production",
    "failpoints": "",
    "model_faults": "",
    "api_host": "127.0.0.1",
    "health_host": "127.0.0.1",
    "flower_host": "127.0.0.1",
    "flower_basic_auth": "",
    "trusted_proxies": (),
    "cors_origins": (),
    "row_security": "required",
    "celery_control": "read",
    "webhook_allow_http": False,
    "webhook_allow_networks": (),
    "mcp_commands": "",
    "shadow_tenant": "",
    "shadow_sources": (),
    "response_cache": "off",
}


def test_a_setting_that_is_not_given_is_safe() -> None:
    assert {name: Settings.model_fields[name].default for name in SAFE} == SAFE


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
        max_wait_s
        key_concurrent_streams
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
        drain_s max_step_s encode_pass_ms stream_deltas_per_s host_turn_s
        autoscale_wait_s autoscale_drain_s max_audio_s webhook_timeout_s
        webhook_disable_after_s
        """,
    ),
    (
        1,
        True,
        None,
        """
        requests_per_minute tokens_per_minute
        max_queued_jobs max_queued_jobs_per_tenant max_queued_tokens max_queued_tokens_per_tenant
        ready_window stream_ttl_s max_slots max_adapters step_tokens
        encode_tokens transcribe_chunks kv_block_tokens
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
        ("LEASE_S", "0", Naming("'0'")),
        ("API_KEYS", "x", Naming("unknown setting")),
        (
            "CORS_ORIGINS",
            "https://A",
            Naming("'https://A'", "scheme://host:port"),
        ),
        (
            "CORS_ORIGINS",
            "https://a,*",
            Naming("'https://a,*'", "alone"),
        ),
        ("DIGEST_KEYS", "s3cr3t" * 5, Naming("32 characters", "`openssl rand -hex 32`")),
        ("FAILPOINTS", "x=kill", Naming("'x=kill'", "HEADRACE_ENVIRONMENT=test")),
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_refusal_names_the_variable_and_hides_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: Naming
) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(SettingsError, match=f"HEADRACE_{name}: ") as refused:
        load_settings()
    assert refused.value.message == said
    assert "s3cr3t" not in refused.value.message


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
    with pytest.raises(SettingsError, match=r"DATABASE_URL .*`headrace up`"):
        require_services(settings)
    with pytest.raises(SettingsError, match="REDIS_URL "):
        require_services(Settings(redis_url=""), only_redis=True)
