"""Settings: read once, refused when unknown or malformed, in one sentence that names the variable."""

import pytest

from headrace.store.errors import SettingsError
from headrace.store.settings import Settings, load_settings, require_services


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(f"HEADRACE_{field.upper()}" for field in Settings.model_fields), "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://app@db/headrace")
    monkeypatch.setenv("REDIS_URL", "redis://cache")
    monkeypatch.setenv("HEADRACE_LEASE_S", "7.5")
    monkeypatch.setenv("HEADRACE_WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8, ::1/128")
    settings = load_settings()
    assert settings.database_url == "postgresql://app@db/headrace"
    assert settings.redis_url == "redis://cache"
    assert settings.lease_s == 7.5
    assert settings.webhook_allow_networks == ("127.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADRACE_LEASE_S", "soon"),
        ("HEADRACE_LEASE_S", "0"),
        ("HEADRACE_API_PORT", "70000"),
        ("HEADRACE_MAX_SLOTS", "1.5"),
        ("HEADRACE_WEBHOOK_ALLOW_HTTP", "perhaps"),
        ("HEADRACE_LEESE_S", "10"),
        ("HEADRACE_", "1"),
        ("HEADRACE_CORS_ORIGINS", "chat.example.com"),
        ("HEADRACE_CORS_ORIGINS", "https://chat.example.com/"),
        ("HEADRACE_CORS_ORIGINS", "https://*.example.com"),
        ("HEADRACE_CORS_ORIGINS", "https://chat.example.com,*"),
        ("HEADRACE_AUTOSCALE", "0..4"),
        ("HEADRACE_AUTOSCALE", "smollm2=4..0"),
        ("HEADRACE_AUTOSCALE", "smollm2=0..0"),
        ("HEADRACE_AUTOSCALE", "smollm2=1..2,smollm2=0..4"),
        ("HEADRACE_MCP_COMMANDS", "/usr/bin/clock-mcp"),
        ("HEADRACE_MCP_COMMANDS", '["/usr/bin/clock-mcp"]'),
        ("HEADRACE_MCP_COMMANDS", '{"clock": "/usr/bin/clock-mcp"}'),
        ("HEADRACE_MCP_COMMANDS", '{"clock": ["clock-mcp"]}'),
        ("HEADRACE_MCP_COMMANDS", '{"clock": ["/usr/bin/clock-mcp", 1]}'),
        ("HEADRACE_MCP_COMMANDS", '{"the clock": ["/usr/bin/clock-mcp"]}'),
    ],
)
def test_a_bad_variable_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert name in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("FAILPOINTS", "finish.before", "not name=action"),
        ("FAILPOINTS", "finish.before=explode", "not name=action"),
        ("FAILPOINTS", "finish.before=kill@0", "not name=action"),
        ("FAILPOINTS", "finish.before=sleep", "not name=action"),
        ("FAILPOINTS", "finish.before=kill,", "not name=action"),
        ("FAILPOINTS", "finish.sideways=kill", "no failpoint 'finish.sideways'"),
        ("MODEL_FAULTS", "exit", "not kind:MARK"),
        ("MODEL_FAULTS", "burn:heron", "not kind:MARK"),
        ("MODEL_FAULTS", "exit:", "not kind:MARK"),
    ],
)
def test_a_fault_that_is_not_known_stops_the_process(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv("HEADRACE_ENVIRONMENT", "test")
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(SettingsError, match=f"HEADRACE_{name}: .*{says}"):
        load_settings()


@pytest.mark.parametrize("environment", ["production", "development", None])
@pytest.mark.parametrize(("name", "value"), [("FAILPOINTS", "claim.done=kill"), ("MODEL_FAULTS", "exit:heron")])
def test_faults_are_refused_outside_of_tests(
    monkeypatch: pytest.MonkeyPatch, environment: str | None, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    if environment is not None:
        monkeypatch.setenv("HEADRACE_ENVIRONMENT", environment)
    with pytest.raises(SettingsError, match=f"HEADRACE_{name}: .*HEADRACE_ENVIRONMENT=test") as caught:
        load_settings()
    assert "\n" not in caught.value.message


def test_tests_may_ask_for_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ENVIRONMENT", "test")
    monkeypatch.setenv("HEADRACE_FAILPOINTS", "claim.done=kill@2, renew.before=sleep:20*")
    monkeypatch.setenv("HEADRACE_MODEL_FAULTS", "exit:poison heron, nan:bad:mark")
    assert load_settings().failpoints.startswith("claim.done")


@pytest.mark.parametrize(("given", "missing"), [("DATABASE_URL", "REDIS_URL"), ("REDIS_URL", "DATABASE_URL")])
def test_a_missing_service_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch, given: str, missing: str) -> None:
    monkeypatch.setenv(given, "redis://somewhere")
    with pytest.raises(SettingsError, match=f"{missing} .*headrace up"):
        require_services(load_settings())
