"""The command line of a host: options, settings and refusals."""

from types import SimpleNamespace
from typing import Any

import pytest

from headrace.features.hosts import __main__ as host
from headrace.features.hosts.placement import Rules
from headrace.store.errors import HeadraceError, InvalidRequest, SettingsError, Unavailable
from headrace.store.settings import Settings
from tests.features.hosts.test_displacement import version

GIVEN = Settings(
    database_url="postgresql://x@localhost/y",
    redis_url="redis://y",
    host_residence_s=11.0,
    host_turn_s=70.0,
    drain_s=6.0,
    host_swap_share=0.25,
)


class Made:
    """Stands for both kinds of hosts; notes how it was made."""

    def __init__(self) -> None:
        self.given: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.heartbeat = SimpleNamespace(check=lambda: "ok")
        self.error: Exception | None = None

    def model(self, _settings: Settings, *given: Any, **options: Any) -> "Made":
        self.given.append(("model", given, options))
        return self

    def scaled(self, _settings: Settings, *given: Any, **options: Any) -> "Made":
        self.given.append(("scaled", given, options))
        return self

    def run(self) -> None:
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Nothing runs."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(host, "load_settings", lambda: GIVEN)
    monkeypatch.setattr(host, "configure_logging", lambda _level: None)
    monkeypatch.setattr(host, "on_stop_signals", lambda _stop: None)
    monkeypatch.setattr(host, "check_services", lambda _settings, _models: None)
    monkeypatch.setattr(host, "ModelHost", made.model)
    monkeypatch.setattr(host, "ScaledHost", made.scaled)
    return made


def test_a_host_gets_its_budget_and_the_rules_of_the_settings(made: Made) -> None:
    assert host.main(["--memory", "4GiB", "--sleep-memory", "1GiB", "--name", "h1", "--models", "a, b@2"]) == 0
    ((kind, given, options),) = made.given
    assert (kind, given[:2], options["sleep_bytes"]) == (
        "model",
        ("h1", Rules(4 << 30, residence_s=11.0, turn_s=70.0, drain_s=6.0, swap_share=0.25)),
        1 << 30,
    )
    named = [version(model=model, queue=f"{model}@{number}") for model in "ab" for number in (1, 2)]
    assert [one.queue for one in named if options["is_ours"](one)] == ["a@1", "a@2", "b@2"]


def test_a_scaled_host_has_no_budget_and_all_versions_by_default(made: Made) -> None:
    assert host.main(["--autoscale", "--name", "h2"]) == 0
    ((kind, given, options),) = made.given
    assert (kind, given[0], options.keys()) == ("scaled", "h2", {"is_ours"})
    assert options["is_ours"](version())
    assert host.main(["--memory", "64MiB", "--name", "h3"]) == 0
    assert (made.given[1][1][1].budget_bytes, made.given[1][2]["sleep_bytes"]) == (64 << 20, 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("a setting"), 2),
        (InvalidRequest("--models: a"), 2),
        (Unavailable("Redis is away"), 1),
    ],
)
def test_what_is_wrong_is_one_line_with_its_exit_code(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: HeadraceError,
    code: int,
) -> None:
    def refuse(_settings: Settings, _models: Any) -> None:
        raise error

    made.error = Unavailable("Postgres went away")
    assert host.main(["--autoscale"]) == 1
    assert capsys.readouterr().err == "headrace host: Postgres went away\n"
    monkeypatch.setattr(host, "check_services", refuse)
    assert host.main(["--autoscale"]) == code
    assert capsys.readouterr().err == f"headrace host: {error.message}\n"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--memory --autoscale"),
        (["--memory", "4GiB", "--autoscale"], "with argument --memory"),
        (["--autoscale", "--sleep-memory", "1GiB"], "--sleep-memory"),
        (["--memory", "63MiB"], "'63MiB'"),
        (["--memory", "4GiB", "--models", " , "], "no model"),
        (["--memory", "4GiB", "--models", "a@"], "'a@'"),
        (["--memory", "4GiB", "--name", "-x"], "argument --name"),
        (["--memory", "4GiB", "--name", "x" * 64], "--name"),
    ],
)
def test_wrong_options_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        host.main(options)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"), [("box-1.lan", "box-1.lan"), ("-a b_", "a-b_"), ("ä", "host"), ("x" * 70, "x" * 63)]
)
def test_the_name_of_the_machine_is_that_of_the_host(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)
    assert host.main(["--autoscale"]) == 0
    assert made.given[0][1][0] == expected
