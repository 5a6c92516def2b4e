"""``headrace dead-letters`` and ``headrace queues`` against a real API."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import httpx2
import orjson
import pytest

from store import keys
from store.db import Database
from store.registry import register_version
from store.settings import Settings, child_environment
from tests.producer_api.calling import bury, submit
from tests.producer_api.serving import serving

Verb = Callable[..., str]


@pytest.fixture
def operator(settings: Settings, db: Database) -> Iterator[tuple[list[str], Verb]]:
    """Two jobs that were given up, and whoever runs verbs."""
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="0" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="t",
    )
    key = keys.create_key(db, keys.create_tenant(db, "acme"), "all", keys.SCOPES, actor="tests")
    with serving(settings) as server:
        with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}) as api:
            ids = [bury(db, submit(api, max_attempts=attempts)) for attempts in (1, 9)]
        env = child_environment(
            {"HEADRACE_HOME": str(settings.home), "HEADRACE_API_URL": server.url, "HEADRACE_API_KEY": key}
        )

        def verb(*arguments: str) -> str:
            argv = [sys.executable, "-m", "cli.main", *arguments]
            return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

        yield ids, verb


def test_they_are_listed_and_replayed_once(operator: tuple[list[str], Verb]) -> None:
    (exhausted, poison), verb = operator
    listed = verb("dead-letters")
    assert listed.index(poison) < listed.index(exhausted)
    assert exhausted not in verb("dead-letters", "--code", "poison")
    (replayed,) = orjson.loads(verb("dead-letters", "--replay", "--code", "poison", "--json"))
    assert (replayed["id"], replayed["replayed"]) == (poison, False)
    assert replayed["job_id"] in verb("dead-letters")
    said = verb("dead-letters", "--replay")
    assert exhausted in said
    assert poison not in said
    assert verb("dead-letters", "--replay").strip() == "nothing to replay"
    assert verb("dead-letters", "--queue", "other@1").strip() == "no dead letters"


def test_a_queue_is_shown_stopped_and_let_go_on(operator: tuple[list[str], Verb]) -> None:
    _, verb = operator
    (shown,) = orjson.loads(verb("queues", "--json"))
    assert (shown["name"], shown["paused_at"]) == ("tiny@1", None)
    (paused,) = orjson.loads(verb("queues", "--pause", "tiny@1", "--json"))
    assert paused["paused_at"]
    assert "ago" in verb("queues").splitlines()[1]
    verb("queues", "--resume", "tiny@1")
    assert "ago" not in verb("queues")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        verb("queues", "--pause", "nobody@1")
    assert "no queue 'nobody@1'" in refused.value.stderr
