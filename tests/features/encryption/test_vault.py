"""Encrypted values decrypt only in their own place, with any configured key."""

import base64
import io

import orjson
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import text

from headrace.features.encryption.master_keys import new_key, parse_keys
from headrace.features.encryption.vault import Vault
from headrace.store.db.database import Database
from headrace.store.db.seal_part import open_seal
from headrace.store.digests import Digests
from headrace.store.errors import CannotOpen, InvalidRequest, SettingsError
from headrace.store.jobs import claims, jobs
from headrace.store.json_text import has_nul
from headrace.store.schema.job_states import JobState
from headrace.store.seal import (
    PLAIN,
    SealContext,
    frame_key_id,
    open_columns,
    open_job,
    seal_columns,
    seal_job,
)
from headrace.store.settings import Settings, load_settings
from tests.store.making import MakeJob

OLD, NEW = parse_keys(f"old:{new_key()},new:{new_key()}", "keys").items()
PLACE = SealContext("tenant_a", "jobs", "payload", "job_1")


@pytest.mark.parametrize(
    "elsewhere",
    [
        SealContext("tenant_b", "jobs", "payload", "job_1"),
        SealContext("tenant_a", "jobs", "output", "job_1"),
        SealContext("tenant_a", "responses", "payload", "job_1"),
        SealContext("tenant_a", "jobs", "payload", "job_2"),
    ],
)
def test_a_value_cannot_be_moved(elsewhere: SealContext) -> None:
    vault = Vault(dict([NEW]))
    sealed = vault.seal({"text": "secret"}, PLACE)
    assert vault.open(sealed, PLACE) == {"text": "secret"}
    with pytest.raises(CannotOpen, match="changed, moved"):
        vault.open(sealed, elsewhere)
    with pytest.raises(CannotOpen, match="changed, moved"):
        vault.open_text(vault.seal_text("secret", PLACE), elsewhere)


def test_the_first_key_seals_and_all_open() -> None:
    before, both, after = Vault(dict([OLD])), Vault(dict([NEW, OLD])), Vault(dict([NEW]))
    old, new = before.seal("secret", PLACE), both.seal("secret", PLACE)
    assert both.open(old, PLACE) == both.open(new, PLACE) == after.open(new, PLACE) == "secret"
    with pytest.raises(CannotOpen, match=r"'old'.*HEADRACE_ENCRYPTION_KEYS"):
        after.open(old, PLACE)
    rewrapped = {"enc": both.rewrap(old["enc"], str(PLACE))}
    assert rewrapped["enc"]["d"] == old["enc"]["d"]
    assert after.open(rewrapped, PLACE) == "secret"


def test_another_key_of_the_same_id_is_an_error_and_no_garbage() -> None:
    sealed = Vault({"k": OLD[1]}).seal("secret", PLACE)
    with pytest.raises(CannotOpen, match=r"another key .*'k'"):
        Vault({"k": NEW[1]}).open(sealed, PLACE)


# Written once with these keys, by the format that docs/privacy.md and the module describe: what is stored in databases
# and on disks today must open for ever.
KNOWN = Vault({"k2": bytes(range(32)), "k1": bytes(range(32, 64))})
KNOWN_PLACE = SealContext("tnt_1", "jobs", "payload", "job_1")
KNOWN_ENVELOPE = {
    "k": "k2",
    "w": "e7XuHtBV5buP5rAJ7VrlElh0zNcOsw4XTjuer4lC3EehmkozXsKzgMBKmV2YlDC/DV8YD8JkSXgCFZ7e",
    "d": "JMDpv4JnBGb9oszIpostVQTggFJYqL3yc0Gn6IJmHa6lCAfKaJFsr0HRctkOQIYJPY2Zrjq6TLH1+Ik=",
}
KNOWN_TEXT = (
    "enc:k2:q0tQTUkzezYzcDWDjmz5Uc1Ce1ivSOhaNUM4ULUFBTfAHMke3/Z2rlig/PJKc1w44We9Kc9/6+lwQpLx:J8"
    "COtiIYjEHH55InjTSOXGfyQIzzE72D/jE6nz48yIbicPOQUgJ9"
)
KNOWN_FRAME = bytes.fromhex("026b32fbbde135a40b753b42a6d569cd4e00c576be2372caed1949a1f2989aa44224ca46f66958")
KNOWN_CHECKS = {
    "k2": "JlRaJAVOV3Oybl0iYoMS8xKedIalc1msw52vReQm6pg=",
    "k1": "bxR+WMQ4Ki/2Q7VItMk31Wv2VKI6BJmPgr4DZOHsMhU=",
}
KNOWN_TOKENS = {"k2": ["F7sDjyAN9kPxRCKcKfO9"], "k1": ["QR1ncMnK1ZAHIOHmObLm"]}


def test_what_was_sealed_long_ago_opens() -> None:
    assert KNOWN.open({"enc": KNOWN_ENVELOPE}, KNOWN_PLACE) == {"text": "how much is the fish"}
    assert KNOWN.open_text(KNOWN_TEXT, KNOWN_PLACE) == "whsec_known"
    assert KNOWN.open_frame(KNOWN_FRAME, "job_1", b"1-1 d") == b"how much"
    assert KNOWN.checks() == KNOWN_CHECKS
    assert KNOWN.tokens("tnt_1", {"name": "fish"}) == KNOWN_TOKENS


def test_a_digest_is_of_its_purpose_and_stays_what_it_was() -> None:
    """By what an earlier release stored, requests are recognised and erased users found."""
    digests = Digests([bytes(range(32)), bytes(32)])
    assert digests.of("name", b"kim") == [
        "edb9179ad3b6e90980d4793770946f1d",
        "e3a6fc8e80165310d83bc47b7867a3e6",
    ]
    assert not set(digests.of("name", b"kim")).intersection(digests.of("request", b"kim"))


def test_a_data_key_is_bound_to_the_id_of_the_key_that_wraps_it() -> None:
    """Of two ids with one key, as after a mistake in the settings, only the one that wrapped opens."""
    vault = Vault({"k1": bytes(32), "k2": bytes(32)})
    envelope = vault.seal("secret", PLACE)["enc"]
    with pytest.raises(CannotOpen, match="changed, moved"):
        vault.open({"enc": envelope | {"k": "k2"}}, PLACE)


def test_a_sealed_file_is_what_its_format_says() -> None:
    """Sealed here by the documented format, and opened by the product; then the other way round."""
    content, digest = bytes(range(256)) * 300, "0" * 64
    key, envelope = (
        bytes(range(64, 96)),
        {"k": "k2", "w": "AAAAAAAAAAAAAAAATv33nfFpxfpA4eN+VGHf1oISBAB81DZ42Mfp2JmiAwnStSZeeEZwm5H2IwgKMX/Y"},
    )
    header = orjson.dumps(envelope)
    sealed = len(header).to_bytes(2, "big") + header + _chunks(key, content, digest)
    assert KNOWN.open_file(io.BytesIO(sealed), digest).read() == content
    for changed, name in ((sealed[:-5], digest), (sealed, "1" * 64)):
        with pytest.raises(CannotOpen, match="changed"):  # before a byte of it is sent
            KNOWN.open_file(io.BytesIO(changed), name)
    out = io.BytesIO()
    writer = KNOWN.file_writer(out)
    writer.write(content)
    writer.end(digest)
    length = int.from_bytes(out.getvalue()[:2], "big")
    written = orjson.loads(out.getvalue()[2 : 2 + length])
    wrapped = base64.b64decode(written["w"])
    key = AESGCM(bytes(range(32))).decrypt(wrapped[:12], wrapped[12:], b"k2")
    assert out.getvalue()[2 + length :] == _chunks(key, content, digest)


def _chunks(key: bytes, content: bytes, digest: str) -> bytes:
    """Chunks of 64 KiB, each with its number in 11 bytes and a byte that marks the last."""
    parts = [content[at : at + 65536] for at in range(0, len(content), 65536)]
    cipher, last = AESGCM(key), len(parts) - 1
    return b"".join(
        cipher.encrypt(n.to_bytes(11, "big") + bytes([n == last]), part, digest.encode() if n == last else None)
        for n, part in enumerate(parts)
    )


def test_what_was_never_sealed_stays_readable() -> None:
    vault, place = Vault(dict([NEW])), PLACE.with_column("metadata")
    for plain in ({"enc": "metadata may be called so"}, [1, 2], {}, None, "enc:of a caller's"):
        assert vault.open(plain, place) == plain
    assert vault.open(PLAIN.seal({"b": 1, "a": 2}, PLACE), PLACE) == {"b": 1, "a": 2}
    for text_ in ("whsec_plain", "enc:a:b", "enc:a:b:c:d", "x:a:b:c"):
        assert vault.open_text(text_, PLACE) == text_
    assert PLAIN.seal({"text": "x"}, place) == {"text": "x"}
    assert [vault.seal(empty, PLACE) for empty in ({}, [], None, "")] == [{}, [], None, ""], "what is empty stays"
    assert PLAIN.seal_text("x", PLACE) == "x"


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_what_postgres_would_refuse_is_refused_sealed_as_well(value: str) -> None:
    for seal in (Vault(dict([NEW])), PLAIN):
        with pytest.raises(InvalidRequest):
            seal.seal([value], PLACE)
    assert Vault(dict([NEW])).seal(["\\u0000"], PLACE)


@pytest.mark.parametrize(
    "given",
    ["nokey", f"bad id:{new_key()}", "k:short", "k:AAAA", f"k:{new_key()},k:{new_key()}", f":{new_key()}"],
    # Keys are random, and processes that share the tests must call them by the same names.
    ids=["no colon", "bad id", "short", "too short", "same id", "no id"],
)
def test_malformed_keys_stop_the_process_and_are_not_shown(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ENCRYPTION_KEYS", given)
    with pytest.raises(SettingsError, match="HEADRACE_ENCRYPTION_KEYS") as refused:
        open_seal(load_settings())
    assert not {part for part in given.replace(",", ":").split(":") if len(part) > 3} & set(
        refused.value.message.split()
    )


def test_a_job_is_sealed_in_every_column_and_opens_through_the_store(settings: Settings, make_job: MakeJob) -> None:
    sealing = Database(settings.database_url, application_name="tests", seal=Vault(dict([NEW])))
    keyless = Database(settings.database_url, application_name="tests")
    try:
        job = make_job(payload={"input": {"prompt": "MARKER"}}, metadata={"name": "MARKER"})
        jobs.accept(sealing, [job])
        assert claims.claim(keyless, "w", job.queue, [job.id], 30) == {}  # handed back: nothing to run it with
        claim = claims.claim(sealing, "w", job.queue, [job.id], 30)[job.id]
        assert claim.payload == job.payload
        ended = claims.Finish(
            job.id,
            claim.epoch,
            JobState.SUCCEEDED,
            {"text": "MARKER", "finish_reason": "length"},
            {"code": "odd", "message": "MARKER"},
            None,
            ["MARKER"],
            tenant_id=job.tenant_id,
        )
        assert claims.finish(sealing, [ended]) == {job.id}
        assert "MARKER" not in _dump(sealing)
        stored = jobs.get(sealing, job.tenant_id, job.id)
        assert (stored.payload, stored.metadata, stored.output) == (job.payload, job.metadata, ended.output)
        assert [found.id for found in jobs.list_jobs(sealing, job.tenant_id, metadata={"name": "MARKER"})] == [job.id]
        assert jobs.list_jobs(sealing, job.tenant_id, metadata={"name": "other"}) == []
        stream = jobs.stored_deltas(sealing, job.tenant_id, job.id)
        assert stream is not None
        assert stream.deltas == ["MARKER"]
        with pytest.raises(CannotOpen, match="'new'"):
            jobs.get(keyless, job.tenant_id, job.id)
    finally:
        sealing.close()
        keyless.close()


def test_the_key_file_is_read(settings: Settings) -> None:
    path = settings.home / "keys"
    path.write_text(f"second:{new_key()}\nfirst:{new_key()}\n")
    assert [*open_seal(Settings(encryption_key_file=path)).checks()] == ["second", "first"]
    with pytest.raises(SettingsError, match="cannot read"):
        open_seal(Settings(encryption_key_file=settings.home / "nothing"))
    with pytest.raises(SettingsError, match="not both"):
        open_seal(Settings(encryption_key_file=path, encryption_keys=f"k:{new_key()}"))


def _dump(db: Database) -> str:
    tables = ("jobs", "job_streams", "attempts", "job_events")
    with db.begin() as connection:
        return "".join(str(connection.execute(text(f"SELECT * FROM {name}")).all()) for name in tables)


def test_sql_reads_what_it_needs_beside_the_envelope() -> None:
    values = {
        "payload": {"input": 1},
        "metadata": {"name": "fish"},
        "output": {"text": "x", "finish_reason": "stop"},
        "error": {"code": "odd", "retryable": True, "attempt": 2, "message": "y"},
    }
    sealed = seal_job(KNOWN, "tnt_1", "job_1", values)
    beside = {name: {key: part for key, part in value.items() if key != "enc"} for name, value in sealed.items()}
    assert beside == {
        "payload": {},
        "metadata": {"t": KNOWN_TOKENS["k2"]},
        "output": {"finish_reason": "stop"},
        "error": {"code": "odd", "retryable": True, "attempt": 2},
    }
    row = {"id": "job_1", "tenant_id": "tnt_1", "state": "failed"}
    assert open_job(KNOWN, {**row, **sealed}) == {**row, **values}
    assert KNOWN.metadata_filters("tnt_1", {"name": "fish"}) == [
        {"name": "fish"},
        {"t": KNOWN_TOKENS["k2"]},
        {"t": KNOWN_TOKENS["k1"]},
    ]
    columns = seal_columns(KNOWN, PLACE, {"input": [1], "request": {"a": 2}})
    assert open_columns(KNOWN, PLACE, {"id": 5, **columns}, "input", "request") == {
        "id": 5,
        "input": [1],
        "request": {"a": 2},
    }
    with pytest.raises(CannotOpen):
        open_columns(KNOWN, PLACE, {"input": columns["request"]}, "input")


def test_a_frame_belongs_to_its_job_and_place() -> None:
    sealed = KNOWN.seal_frame(b"how much", "job_1", b"1-1 d")
    assert (frame_key_id(sealed), KNOWN.open_frame(sealed, "job_1", b"1-1 d")) == ("k2", b"how much")
    for job_id, where in (("job_2", b"1-1 d"), ("job_1", b"1-2 d")):
        with pytest.raises(CannotOpen, match=f"stream of {job_id} .*'k2'") as refused:
            KNOWN.open_frame(sealed, job_id, where)
        assert refused.value.code == "encryption_value_invalid"
    with pytest.raises(CannotOpen, match=r"stream of job_1 .*'k2'.* HEADRACE_ENCRYPTION_KEYS") as missing:
        Vault(dict([NEW])).open_frame(sealed, "job_1", b"1-1 d")
    assert missing.value.code == "encryption_key_missing"


def test_a_zero_character_is_found_and_a_backslash_before_it_is_none() -> None:
    for data, expected in ((rb'"\u0000"', True), (rb'"\\u0000"', False), (rb'"\\\u0000"', True), (b'"u0000"', False)):
        assert has_nul(data) is expected, data


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a:" + "A" * 43 + "=, b", "S: entry 2 .*ID:KEY"),
        ("x" * 33 + ":AAAA", "S: entry 1 .*ID:KEY"),
        ("a:" + "A" * 43 + "=\na:" + "A" * 43 + "=", "S: .*id a .*twice"),
        ("a:AAAA", "S: .*key a .*3 bytes, not 32.*`headrace encryption new-key`"),
        ("a:A", "S: .*key a .*base64.*`headrace encryption new-key`"),
    ],
)
def test_a_malformed_key_is_named_by_its_place_or_id(given: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_keys(given, "S")


def test_keys_are_parsed_in_their_order_and_digests_without_keys_are_plain() -> None:
    zero = "A" * 43 + "="
    assert parse_keys(f" {'x' * 32}:{zero},\n\n b-_1:{zero} ", "S") == {"x" * 32: bytes(32), "b-_1": bytes(32)}
    assert (PLAIN.is_on, KNOWN.is_on, KNOWN.sealing_key, KNOWN.key_ids) == (False, True, "k2", ("k2", "k1"))
    assert (Digests().is_keyed, Digests([b"x"]).is_keyed) == (False, True)
    assert Digests().of("name", b"kim") == ["4c1c7ddc29a00933ce2774233ca74a9f"]
    assert [key.hex()[:8] for key in KNOWN.digest_keys()] == ["105b6747", "4a92bdea"]
