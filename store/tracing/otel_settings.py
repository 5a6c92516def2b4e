"""The standard variables ``OTEL_*`` that Headrace obeys, checked: the SDK would ignore a malformed one with a warning.

OpenTelemetry's exporter reads the variables of the exporter itself, because all its signals share them. An empty
variable counts as unset.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headrace.store.errors import SettingsError

ON = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The variable that turns tracing on; ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` does so too, and goes before it."""

_TRACES = "OTEL_EXPORTER_OTLP_TRACES_"
_ALL = "OTEL_EXPORTER_OTLP_"
_RATIO = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *_RATIO)
_PAIRS = re.compile(r"\s*[^=,\s]+\s*=[^,]*(,\s*[^=,\s]+\s*=[^,]*)*,?\s*")


@dataclass(frozen=True, slots=True)
class OtelSettings:
    """What tracing needs from the environment. ``delay_ms``: the longest time that a span waits for others.

    ``service_name`` is empty if the environment does not name the service.
    """

    endpoint: str
    sampler: str
    ratio: float
    queue_size: int
    batch_size: int
    delay_ms: int
    service_name: str


def read_otel_settings(environment: Mapping[str, str]) -> OtelSettings | None:
    """Return the settings, or None if tracing is off. Raises SettingsError with the variable and the remedy."""
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    is_disabled = _one_of(given, "OTEL_SDK_DISABLED", ("false", "true"))
    exporter = _one_of(given, "OTEL_TRACES_EXPORTER", ("otlp", "none"))
    endpoint = _endpoint(given)
    _check_exporter(given)
    sampler = _one_of(given, "OTEL_TRACES_SAMPLER", _SAMPLERS) or "parentbased_always_on"
    ratio = _number(given, "OTEL_TRACES_SAMPLER_ARG", 1.0, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    queue_size = _positive(given, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    batch_size = _positive(given, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, queue_size))
    if batch_size > queue_size:
        raise SettingsError(f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE: at most OTEL_BSP_MAX_QUEUE_SIZE, which is {queue_size}")
    delay_ms = _positive(given, "OTEL_BSP_SCHEDULE_DELAY", 5000)
    if endpoint is None or is_disabled == "true" or exporter == "none":
        return None
    return OtelSettings(
        endpoint, sampler, ratio if sampler in _RATIO else 1.0, queue_size, batch_size, delay_ms, _service_name(given)
    )


def _endpoint(given: Mapping[str, str]) -> str | None:
    """Return the address that spans are sent to: the one for traces as it is, the one for all signals with a path."""
    for name, path in ((f"{_TRACES}ENDPOINT", ""), (ON, "/v1/traces")):
        if value := given.get(name):
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                # Without the value: it may have a password.
                raise SettingsError(f"{name}: write http://HOST:PORT or https://HOST:PORT")
            return value.removesuffix("/") + path if path else value
    return None


def _check_exporter(given: Mapping[str, str]) -> None:
    """Check what OpenTelemetry's exporter reads. Headers are secrets: no error shows them."""
    for prefix in (_TRACES, _ALL):
        _one_of(given, f"{prefix}PROTOCOL", ("http/protobuf",))
        _one_of(given, f"{prefix}COMPRESSION", ("none", "gzip", "deflate"))
        _number(given, f"{prefix}TIMEOUT", 10.0, float, lambda value: 0 < value < math.inf, "seconds above 0")
        _check_pairs(given, f"{prefix}HEADERS")
        for kind in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
            path = given.get(f"{prefix}{kind}")
            if path is not None and not Path(path).is_file():
                raise SettingsError(f"{prefix}{kind}: there is no file {path}")
    _check_pairs(given, "OTEL_RESOURCE_ATTRIBUTES")


def _check_pairs(given: Mapping[str, str], name: str) -> None:
    if (value := given.get(name)) is not None and not _PAIRS.fullmatch(value):
        raise SettingsError(f"{name}: write NAME=VALUE, with commas between several")


def _one_of(given: Mapping[str, str], name: str, values: tuple[str, ...]) -> str | None:
    value = given.get(name)
    if value is not None and value.lower() not in values:
        raise SettingsError(f"{name}: one of {', '.join(values)} (got {value!r})")
    return value and value.lower()


def _positive(given: Mapping[str, str], name: str, default: int) -> int:
    return int(_number(given, name, default, int, lambda value: value > 0, "a whole number above 0"))


def _number(
    given: Mapping[str, str],
    name: str,
    default: float,
    read: Callable[[str], float],
    is_good: Callable[[float], bool],
    wanted: str,
) -> float:
    text = given.get(name)
    if text is None:
        return default
    try:
        value = read(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or not is_good(value):
        raise SettingsError(f"{name}: {wanted} (got {text!r})")
    return value


def _service_name(given: Mapping[str, str]) -> str:
    if name := given.get("OTEL_SERVICE_NAME"):
        return name
    pairs = (pair.partition("=") for pair in given.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    return next((value.strip() for name, _, value in pairs if name.strip() == "service.name"), "")
