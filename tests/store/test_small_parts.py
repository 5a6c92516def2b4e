"""Errors, ids, the machine, log lines of ended processes, and Redis addresses with Sentinel."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from store import errors, machine
from store.child_process import Child, Command, last_line
from store.encryption.vault import Vault
from store.encryption_keys import open_digests, open_vault
from store.errors import HeadraceError, SettingsError
from store.ids import first_id, new_id
from store.ports import free_port
from store.redis_address import SentinelAddress, is_sentinel, parse_sentinel
from store.settings import Settings
from store.supervisor import NOT_AGAIN, Supervisor

CODES = {
    errors.HeadraceError: "internal_error",
    errors.RequestError: "invalid_value",
    errors.InvalidRequest: "invalid_value",
    errors.Unauthenticated: "invalid_api_key",
    errors.Forbidden: "insufficient_scope",
    errors.NotFound: "not_found",
    errors.Gone: "result_expired",
    errors.Conflict: "conflict",
    errors.PreconditionFailed: "precondition_failed",
    errors.IdempotencyKeyReused: "idempotency_key_reused",
    errors.TooLarge: "request_too_large",
    errors.Unavailable: "no_capacity",
    errors.NoWorker: "no_worker",
    errors.StatementTimeout: "database_unavailable",
    errors.QuotaExceeded: "quota_exceeded",
    errors.CannotOpen: "encryption_key_missing",
    errors.SettingsError: "invalid_settings",
    errors.ModelLoadError: "model_load_failed",
    errors.CannotLoadHere: "model_load_failed",
    errors.VersionRejected: "model_rejected",
}


def test_each_error_has_its_code_and_keeps_what_it_was_given() -> None:
    assert {kind: kind("why").code for kind in CODES} == CODES
    limited = errors.RateLimited("why", retry_after_s=3.5, param="a")
    assert (limited.code, limited.retry_after_s, limited.param, str(limited)) == (
        "rate_limit_exceeded",
        3.5,
        "a",
        "why",
    )
    assert errors.RateLimited("why", retry_after_s=1, code="queue_full").code == "queue_full"
    assert errors.QuotaExceeded("why").retry_after_s == math.inf
    assert [kind("why").retry_after_s for kind in (errors.Unavailable, errors.NoWorker, errors.StatementTimeout)] == [
        1.0,
        10.0,
        1.0,
    ]
    assert (errors.NoWorker("why", param="model").param, errors.Conflict("why", code="x", param="y").param) == (
        "model",
        "y",
    )
    assert issubclass(errors.QuotaExceeded, errors.RateLimited)
    assert issubclass(errors.NoWorker, errors.Unavailable)
    assert not issubclass(errors.Unavailable, errors.RequestError)


def test_ids_sort_by_their_time() -> None:
    at = datetime.now(UTC)
    made = new_id("job")
    assert (made[:4], len(made)) == ("job_", 36)
    assert first_id("job", at - timedelta(seconds=1)) < made < first_id("job", datetime.now(UTC) + timedelta(seconds=1))
    assert first_id("job", datetime(2026, 11, 29, tzinfo=UTC)) == "job_01a22499f800"
    assert first_id("job", datetime(1900, 1, 1, tzinfo=UTC)) == "job_000000000000"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags : avx512f amx_bf16", True), ("flags : avx512_bf16", True), ("Features : bf16", True), ("avx512f", False)],
)
def test_a_processor_says_whether_it_has_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(flags)
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    assert machine.has_bfloat16() is expected
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "nothing")
    assert machine.has_bfloat16(), "if it is not known"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "it said nothing"),
        ("one\n\n two \n", "two"),
        ("an Error: x\nbye", "an Error: x"),
        ("FATAL: y\nbye", "FATAL: y"),
        ("headrace worker: z\nan error behind it", "headrace worker: z"),
    ],
)
def test_the_line_with_the_reason_is_found(text: str, line: str) -> None:
    assert last_line(text) == line


class Ended:
    """A child that has ended so, again and again."""

    def __init__(self, exit_code: int | None, said: str = "a reason") -> None:
        self.exit_code, self._said = exit_code, said

    def log_tail(self) -> str:
        return self._said


class Process:
    """A supervised process that cannot be started for a while."""

    name = "worker"

    def __init__(self, child: Any, *failures: str) -> None:
        self.child = child
        self._failures = list(failures)
        self.num_starts = 0

    def start(self) -> None:
        self.num_starts += 1
        if self._failures:
            raise HeadraceError(self._failures.pop())

    def stop(self) -> None: ...


def test_pauses_between_restarts_grow_to_half_a_minute() -> None:
    now, said = [0.0], list[str]()
    process = Process(Ended(2))
    supervisor = Supervisor([process], said.append, clock=lambda: now[0])
    pauses = []
    for _ in range(7):
        supervisor.tend()
        pauses.append(float(said[-1].rpartition(" in ")[2].removesuffix(" s")))
        now[0] += pauses[-1]
        supervisor.tend()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert said[:2] == ["worker ended (exit 2): a reason; again in 1 s", "worker started again"]
    now[0] += 60
    supervisor.tend()
    assert said[-1].endswith("again in 30 s"), "a minute is not over a minute"
    now[0] += 30
    supervisor.tend()
    now[0] += 60.5
    supervisor.tend()
    assert said[-1].endswith("again in 1 s")


def test_a_process_that_must_not_be_restarted_is_left_and_a_failed_start_is_tried_again() -> None:
    now, said = [0.0], list[str]()
    given_up, failing, well = Process(Ended(NOT_AGAIN)), Process(Ended(-9), "no port", "no disk"), Process(Ended(None))
    supervisor = Supervisor([given_up, failing, well], said.append, clock=lambda: now[0])
    for at in (0.0, 1.0, 2.9, 3.0, 7.0):
        now[0] = at
        supervisor.tend()
    assert said == [
        "worker ended: a reason; it is not started again",
        "worker ended (signal 9); again in 1 s",
        "no disk; again in 2 s",
        "no port; again in 4 s",
        "worker started again",
    ]
    assert (given_up.num_starts, failing.num_starts, well.num_starts) == (0, 3, 0)


def test_a_large_log_is_begun_anew_and_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.child_process._MAX_LOG_BYTES", 4)
    log, old = tmp_path / "logs" / "worker", tmp_path / "logs" / "worker.1"
    for before, is_kept in (("", False), ("four", False), ("five!", True)):
        log.parent.mkdir(exist_ok=True)
        log.write_text(before)
        child = Child(Command("worker", ["/bin/true"], log))
        child.kill()
        assert (old.exists(), log.read_text()) == (is_kept, "" if is_kept else before)
        assert child.log_tail() == "", "without the lines of earlier ones"
    assert old.read_text() == "five!"


def test_the_digests_of_the_settings_come_before_those_of_the_keys() -> None:
    vault = Vault({"k1": bytes(32)})
    given, derived = Settings(digest_keys=("a" * 32,)), Settings()
    both = open_digests(given, vault).of("p", b"v")
    assert both[1:] == open_digests(derived, vault).of("p", b"v")
    assert both[:1] == open_digests(given, Vault()).of("p", b"v")
    assert not open_digests(derived, Vault()).is_keyed


def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe")
    for path, said in (
        (tmp_path / "none", "cannot read {}: No such file or directory"),
        (binary, "cannot read {}: not a text"),
        (empty, "{} has no keys"),
    ):
        with pytest.raises(SettingsError) as refused:
            open_vault(Settings(encryption_key_file=path))
        assert refused.value.message == f"HEADRACE_ENCRYPTION_KEY_FILE: {said.format(path)}"


def test_an_address_of_sentinels_is_read_with_all_its_parts() -> None:
    url = "rediss+sentinel://me:p%40ss@one:1,two/main%20db/3?sentinel_username=s&sentinel_password=t&ssl_ca_certs=/ca"
    assert parse_sentinel(url) == SentinelAddress(
        (("one", 1), ("two", 26379)),
        "main db",
        3,
        "me",
        "p@ss",
        "s",
        "t",
        is_encrypted=True,
        tls={"ssl_ca_certs": "/ca"},
    )
    plain = parse_sentinel("redis+sentinel://one/main")
    assert plain == SentinelAddress((("one", 26379),), "main")
    assert "p@ss" not in repr(parse_sentinel(url))
    assert [is_sentinel(one) for one in (url, "redis://a", "rediss://a", "unix:///a")] == [True, False, False, False]


FORM = "redis+sentinel://host:26379,host:26379/SERVICE/0"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://one", f"needs the service and the number of the database: {FORM}"),
        ("redis+sentinel://one/main/x", f"needs the service and the number of the database: {FORM}"),
        ("redis+sentinel://one,/main", f"needs a host and perhaps a port for each Sentinel: {FORM}"),
        ("redis+sentinel://one:x/main", f"needs a host and perhaps a port for each Sentinel: {FORM}"),
        (
            "redis+sentinel://one/main?db=1",
            "unknown option db: use sentinel_password, sentinel_username, ssl_ca_certs, ssl_cert_reqs, ssl_certfile, "
            "ssl_check_hostname, ssl_keyfile",
        ),
        ("redis+sentinel://one/main?ssl_keyfile=a", "ssl_keyfile needs rediss+sentinel://"),
    ],
)
def test_an_address_that_names_no_sentinels_is_refused(url: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_sentinel(url)
    assert refused.value.message == f"REDIS_URL: {said}"


@pytest.mark.parametrize(("url", "scheme"), [("http://a", "http"), ("cache:6379", "")])
def test_an_unknown_scheme_is_refused(url: str, scheme: str) -> None:
    with pytest.raises(SettingsError) as refused:
        is_sentinel(url)
    assert refused.value.message == (
        "REDIS_URL: needs redis://, rediss:// or unix://, or with Sentinel redis+sentinel:// or rediss+sentinel://, "
        f"not {scheme}:// (docs/deployment.md)"
    )


def test_a_port_of_ours_is_none_that_the_system_gives_away() -> None:
    assert {free_port("127.0.0.1", 0) in range(31_000, 32_768) for _ in range(8)} == {True}
