"""Settings: read once, refused when unknown or malformed, in one sentence that names the variable."""

import pytest

from store.errors import SettingsError
from store.settings import Settings, load_settings, require_services


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
    ],
)
def test_a_bad_variable_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert name in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("given", "missing"), [("DATABASE_URL", "REDIS_URL"), ("REDIS_URL", "DATABASE_URL")])
def test_a_missing_service_says_how_to_give_it(monkeypatch: pytest.MonkeyPatch, given: str, missing: str) -> None:
    monkeypatch.setenv(given, "redis://somewhere")
    with pytest.raises(SettingsError, match=f"{missing} is not set.*headrace up"):
        require_services(load_settings())
