"""OpenTelemetry's variables: which turn tracing on, and what stops the process."""

import pytest

from headrace.store.errors import SettingsError
from headrace.store.tracing.otel_settings import OtelSettings, read_otel_settings
from headrace.store.tracing.tracing import OFF, open_tracing

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        ON | {"OTEL_SDK_DISABLED": "TRUE"},
        ON | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off(environment: dict[str, str]) -> None:
    assert open_tracing("service", "instance", environment) is OFF


def test_the_endpoint_of_traces_goes_before_that_of_all_signals() -> None:
    general = read_otel_settings(ON)
    own = read_otel_settings(ON | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces.example.com/otlp"})
    assert general is not None
    assert own is not None
    assert (general.endpoint, own.endpoint) == ("http://collector:4318/v1/traces", "https://traces.example.com/otlp")


def test_the_sampler_and_the_name_of_the_service() -> None:
    more = {
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.name=ours",
    }
    found = read_otel_settings(ON | more)
    assert found is not None
    assert (found.sampler, found.ratio, found.service_name) == ("parentbased_traceidratio", 0.25, "ours")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://collector:4317"),
        ("OTEL_SDK_DISABLED", "yes"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
        ("OTEL_RESOURCE_ATTRIBUTES", "just-a-name"),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        read_otel_settings(ON | {name: value})


def test_a_malformed_header_is_refused_without_its_value() -> None:
    with pytest.raises(SettingsError) as caught:
        read_otel_settings(ON | {"OTEL_EXPORTER_OTLP_HEADERS": "the-secret-token"})
    assert caught.value.message.startswith("OTEL_EXPORTER_OTLP_HEADERS: ")
    assert "secret" not in caught.value.message


def test_tracing_has_the_defaults_of_the_standard() -> None:
    url = "http://collector:4318/v1/traces"
    assert read_otel_settings(ON) == OtelSettings(url, "parentbased_always_on", 1.0, 2048, 512, 5000, "")
    small = read_otel_settings(ON | {"OTEL_BSP_MAX_QUEUE_SIZE": "9", "OTEL_TRACES_SAMPLER_ARG": "0.5"})
    assert small == OtelSettings(url, "parentbased_always_on", 1.0, 9, 9, 5000, ""), "an argument of no sampler"
    given = {
        "OTEL_TRACES_SAMPLER": "TraceIdRatio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "7",
        "OTEL_SERVICE_NAME": " ours ",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "GZIP",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b, c=d",
    }
    assert read_otel_settings(ON | given) == OtelSettings(url, "traceidratio", 0.0, 100, 100, 7, "ours")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "x", "http://HOST:PORT"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x", "NAME=VALUE"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/none", "/none"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "inf", "'inf'"),
        ("OTEL_TRACES_SAMPLER_ARG", "-0.1", "0 to 1 .*'-0.1'"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "'0'"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049", "OTEL_BSP_MAX_QUEUE_SIZE.* 2048"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "none, gzip, deflate .*'zip'"),
    ],
)
def test_a_refusal_says_what_to_write(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .*{said}"):
        read_otel_settings(ON | {name: value})


def test_all_that_the_standard_names_is_accepted_and_blank_is_unset() -> None:
    always = [f"{of}always_{state}" for of in ("", "parentbased_") for state in ("on", "off")]
    named = {
        "OTEL_TRACES_SAMPLER": [*always, "traceidratio", "parentbased_traceidratio"],
        "OTEL_TRACES_EXPORTER": ["otlp"],
        "OTEL_SDK_DISABLED": ["false"],
        "OTEL_EXPORTER_OTLP_PROTOCOL": ["http/protobuf"],
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": ["none", "gzip", "deflate"],
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": ["0.5"],
        "OTEL_EXPORTER_OTLP_CERTIFICATE": [__file__],
        "OTEL_RESOURCE_ATTRIBUTES": ["a=b,", "a = b , c=d"],
    }
    for name, values in named.items():
        for value in values:
            found = read_otel_settings(ON | {name: value})
            assert found is not None, name
            assert found.sampler == (value if name == "OTEL_TRACES_SAMPLER" else "parentbased_always_on")
    assert read_otel_settings(ON | dict.fromkeys(named, " ")) == read_otel_settings(ON)
