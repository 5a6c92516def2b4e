"""Pages of a re-encryption: the counts, the values that are sealed again, and those that stay."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from headrace.features.encryption.reencryption import (
    PLAIN,
    TARGETS,
    KeyUsage,
    Target,
    digests,
    file_key_id,
    pages,
    reseal_file,
    stream_key_ids,
)
from headrace.features.encryption.vault import Vault
from headrace.features.files import files
from headrace.features.files.blob_storage import FolderBlobs
from headrace.features.files.files import Purpose
from headrace.features.flows.tools import tools
from headrace.store.db.database import Database
from headrace.store.seal import PLAIN as PLAIN_SEAL
from headrace.store.seal import Seal
from headrace.store.settings import Settings
from headrace.store.streams.stream_log import Frame, StreamPublisher, forget, stream_key
from tests.features.flows.tools.test_tools import definition
from tests.refusals import Naming
from tests.store.making import AcceptOne, Query

OLD, NEW = {"old": bytes(32)}, {"new": bytes(range(32))}
BOTH = Vault({**NEW, **OLD})


@pytest.fixture
def sealing(settings: Settings) -> Iterator[Database]:
    """The second key seals, and both open."""
    database = Database(settings.database_url, pool_size=2, application_name="tests", seal=BOTH)
    yield database
    database.close()


def target(table: str) -> Target:
    return next(one for one in TARGETS if one.table == table)


def test_pages_go_on_behind_the_last_row_and_count_by_key(
    db: Database, settings: Settings, sealing: Database, tenant: str, query: Query
) -> None:
    old = Database(settings.database_url, pool_size=1, application_name="tests", seal=Vault(OLD))
    made = [
        tools.create(at, tenant, f"t{n}", definition(), actor="mia") for n, at in enumerate((db, old, old, sealing))
    ]
    seen = list(pages(sealing, target("tools"), limit=2))
    assert [one.num_rows for one in seen] == [2, 2, 0], "a page that is full may not be the last"
    assert sum((one.found for one in seen), Counter()) == Counter({PLAIN: 1, "old": 2, "new": 1})
    assert {(one.num_resealed, one.errors) for one in seen} == {(0, ())}
    before = query("SELECT id, definition #>> '{enc,d}' AS sealed FROM tools ORDER BY id")
    done = list(pages(sealing, target("tools"), limit=9, vault=BOTH))
    assert done == [KeyUsage(4, Counter({PLAIN: 1, "old": 2, "new": 1}), 3, ())]
    assert next(iter(pages(sealing, target("tools"), limit=9, vault=BOTH))) == KeyUsage(4, Counter({"new": 4}), 0, ())
    after = query("SELECT id, definition #>> '{enc,d}' AS sealed FROM tools ORDER BY id")
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, True], (
        "an encrypted value keeps its ciphertext"
    )
    assert tools.list_tools(sealing, tenant) == made
    old.close()


def test_a_key_that_is_missing_is_told_for_each_value_and_plain_errors_stay(
    db: Database, settings: Settings, sealing: Database, tenant: str, accept_one: AcceptOne, query: Query
) -> None:
    old = Database(settings.database_url, pool_size=1, application_name="tests", seal=Vault(OLD))
    tool = tools.create(old, tenant, "t", definition(), actor="mia")
    old.close()
    alone = Database(settings.database_url, pool_size=1, application_name="tests", seal=Vault(NEW))
    (page,) = pages(alone, target("tools"), limit=9, vault=Vault(NEW))
    assert (page.num_resealed, page.errors) == (
        0,
        (Naming(f"tools.definition of {tool.id} ", "'old'", "HEADRACE_ENCRYPTION_KEYS"),),
    )
    alone.close()
    job = accept_one(metadata={"a": "b"})
    query('UPDATE jobs SET error = \'{"code": "odd"}\' WHERE id = :id', id=job)
    (page,) = pages(sealing, target("jobs"), limit=9, vault=BOTH)
    assert (page.found, page.num_resealed) == (Counter({PLAIN: 2}), 2), "payload and metadata"
    (row,) = query("SELECT payload, metadata, error FROM jobs")
    assert (set(row["payload"]), set(row["metadata"]), row["error"]) == ({"enc"}, {"enc", "t"}, {"code": "odd"})


def test_contents_are_written_again_and_kept_meanwhile(
    sealing: Database, tenant: str, tmp_path: Path, query: Query
) -> None:
    blobs = FolderBlobs(tmp_path, Vault(OLD))
    made = []
    for content in (b"a", b"b"):
        draft = blobs.create()
        draft.write(content)
        made.append(files.create(sealing, tenant, draft, filename="a", purpose=Purpose.BATCH, most_bytes=9).digest)
    query("UPDATE blobs SET touched_at = now() - interval '1 day'")
    query("UPDATE blobs SET removed_at = now() WHERE digest = :digest", digest=made[1])
    assert digests(sealing) == made[:1]
    newer = FolderBlobs(tmp_path, BOTH)
    reseal_file(sealing, newer, made[0])
    assert (file_key_id(newer, made[0]), file_key_id(newer, made[1])) == ("new", "old")
    assert newer.open(made[0]).read() == b"a"
    assert list((tmp_path / "drafts").iterdir()) == []
    touched = query("SELECT digest FROM blobs WHERE touched_at > now() - interval '1 hour'")
    assert touched == [{"digest": made[0]}]


def test_every_sealed_column_is_a_target() -> None:
    columns: dict[str, Any] = {one.table: (one.key, one.columns) for one in TARGETS}
    assert (
        columns.items()
        >= {
            "jobs": (("id",), ("payload", "metadata", "output", "error")),
            "job_fallbacks": (("job_id",), ("payload",)),
            "attempts": (("job_id", "epoch"), ("error",)),
            "job_streams": (("job_id",), ("deltas", "logprobs")),
            "job_checkpoints": (("job_id",), ("deltas", "token_ids", "logprobs")),
            "responses": (("job_id",), ("input", "request")),
            "conversations": (("id",), ("metadata",)),
            "conversation_items": (("conversation_id", "id"), ("item",)),
            "batches": (("id",), ("metadata", "errors")),
            "batch_lines": (("batch_id", "line"), ("refusal",)),
            "prompt_versions": (("prompt_id", "version"), ("template",)),
            "vector_store_passages": (("store_id", "file_id", "position"), ("content",)),
            "tools": (("id",), ("definition",)),
            "tool_approvals": (("id",), ("reason",)),
            "tenants": (("id",), ("webhook_secret",)),
            "webhook_secrets": (("tenant_id",), ("secret", "old_secret")),
            "webhook_endpoints": (("id",), ("secret", "old_secret")),
        }.items()
    )
    plain = {one.table for one in TARGETS if one == Target(one.table, one.key, one.columns)}
    of_others = {one.table: (one.tenant, one.never_plain) for one in TARGETS if one.tenant != "tenant_id"}
    sealed = {
        one.table: (one.sealed_for, one.sealed_as, one.is_text) for one in TARGETS if one.sealed_for or one.is_text
    }
    owner = "(SELECT tenant_id FROM {} AS owner WHERE owner.id = {})"
    of_job = owner.format("jobs", "job_id")
    assert plain >= {"responses", "conversations", "conversation_items", "batches", "tools", "tool_approvals"}
    assert target("jobs").never_plain == ("error",)
    assert of_others == {
        "attempts": (of_job, ("error",)),
        "job_streams": (of_job, ()),
        "job_checkpoints": (of_job, ()),
        "batch_lines": (owner.format("batches", "batch_id"), ()),
        "prompt_versions": (owner.format("prompts", "prompt_id"), ()),
        "tenants": ("id", ()),
    }
    assert sealed == {
        "job_fallbacks": ("jobs", "", False),
        "attempts": ("jobs", "", False),
        "tenants": ("webhook_secrets", "secret", True),
        "webhook_secrets": ("", "secret", True),
        "webhook_endpoints": ("", "secret", True),
    }


def test_the_keys_of_sealed_logs_are_counted_and_logs_are_forgotten(redis_client: redis.Redis) -> None:
    def publish(job_id: str, seal: Seal, *texts: str | None) -> None:
        frames = [Frame(job_id, 1, seq, text) for seq, text in enumerate(texts, 1)]
        StreamPublisher(redis_client, maxlen=10, ttl_s=60, seal=seal).publish(frames)

    old, new = Vault(OLD), Vault(NEW)
    publish("a", old, "x", "y")
    publish("b", new, "x")
    publish("c", old, None)  # an end alone has no text
    publish("d", PLAIN_SEAL, "x")
    publish("e", old, "", "x")
    assert stream_key_ids(redis_client) == {"old": 2, "new": 1}
    forget(redis_client, ["a", "e"])
    forget(redis_client, [])
    assert stream_key_ids(redis_client) == {"new": 1}
    assert redis_client.exists(stream_key("a"), stream_key("c")) == 1
