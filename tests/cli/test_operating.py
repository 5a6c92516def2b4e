"""``headrace dead-letters``, ``headrace queues`` and ``headrace webhooks`` against a real API."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import orjson
import pytest
from sqlalchemy import text

from headrace.store.db.database import Database
from headrace.store.registry.models import register_version
from headrace.store.settings import Settings, child_environment
from headrace.store.tenants import api_keys
from tests.cases import full
from tests.processes import StartProcess
from tests.producer_api.calling import bury, submit
from tests.producer_api.serving import serving
from tests.store.making import ask_approval


@dataclass(frozen=True)
class Verb:
    """Runs verbs against the API."""

    env: dict[str, str]

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "headrace.cli.main", *arguments]

    def __call__(self, *arguments: str) -> str:
        argv = self.argv(*arguments)
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=180, check=True).stdout


@pytest.fixture
def operator(settings: Settings, db: Database) -> Iterator[tuple[list[str], Verb]]:
    """Two dead-lettered jobs, and a runner of verbs."""
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
    key = api_keys.create_key(db, api_keys.create_tenant(db, "acme"), "all", api_keys.SCOPES, actor="tests")
    with serving(settings) as server:
        with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as api:
            ids = [bury(db, submit(api, max_attempts=attempts)) for attempts in (1, 9)]
        env = child_environment(
            {"HEADRACE_HOME": str(settings.home), "HEADRACE_API_URL": server.url, "HEADRACE_API_KEY": key}
        )

        yield ids, Verb(env)


def test_they_are_listed_and_replayed_once(operator: tuple[list[str], Verb]) -> None:
    (exhausted, poison), verb = operator
    listed = verb("dead-letters")
    assert listed.index(poison) < listed.index(exhausted)
    assert exhausted not in verb("dead-letters", "--code", "poison")
    (replayed,) = orjson.loads(verb("dead-letters", "replay", "--code", "poison", "--json"))
    assert (replayed["id"], replayed["replayed"]) == (poison, False)
    assert replayed["job_id"] in verb("dead-letters")
    said = verb("dead-letters", "replay")
    assert exhausted in said
    assert poison not in said
    assert verb("dead-letters", "replay").strip() == "nothing to replay"
    assert verb("dead-letters", "--queue", "other@1").strip() == "no dead letters"


@pytest.mark.parametrize("way", ["--wait", *full("--stream")])
def test_a_wait_says_what_for_and_ctrl_c_says_how_to_come_back(
    operator: tuple[list[str], Verb], start_process: StartProcess, way: str
) -> None:
    waiting = start_process(operator[1].argv("submit", "hello", way), operator[1].env)
    job_id = re.search(r"· (job_\w+) accepted; Ctrl-C", waiting.wait_log("accepted; Ctrl-C"))[1]
    said = waiting.wait_log(f"{job_id} is queued: ")
    assert "worker serves tiny@1" in said
    assert f"{job_id} is queued: no worker" in said
    assert "waits       no worker" in operator[1]("show", job_id)
    waiting.signal(signal.SIGINT)
    assert waiting.wait_exit() == 130
    assert f"`headrace watch {job_id}` comes back" in waiting.log()
    assert operator[1]("cancel", job_id).strip() == f"{job_id} cancelled"


@pytest.mark.parametrize("way", ["--stream --json", *full("--wait", "--stream", "--wait --json")])
def test_a_job_that_fails_is_exit_1(
    operator: tuple[list[str], Verb], start_process: StartProcess, db: Database, way: str
) -> None:
    (exhausted, _), verb = operator
    waiting = start_process(verb.argv("submit", "hello", *way.split()), verb.env)
    job_id = re.search(r"· (job_\w+) accepted; Ctrl-C", waiting.wait_log("accepted; Ctrl-C"))[1]
    bury(db, job_id)
    assert waiting.wait_exit() == 1
    assert '"failed"' in waiting.log() if "--json" in way else f"{job_id} failed" in waiting.log()
    watching = start_process(verb.argv("watch", exhausted), verb.env)
    assert watching.wait_exit() == 1


@pytest.mark.full
def test_a_queue_is_shown_stopped_and_let_go_on(operator: tuple[list[str], Verb]) -> None:
    _, verb = operator
    header, row = verb("queues").splitlines()
    assert (header.split()[:4], row.split()[:4]) == (
        ["queue", "workers", "running", "queued"],
        ["tiny@1", "0", "0", "0"],
    )
    (shown,) = orjson.loads(verb("queues", "--json"))
    assert (shown["name"], shown["paused_at"]) == ("tiny@1", None)
    paused = orjson.loads(verb("queues", "pause", "tiny@1", "--json"))
    assert paused["paused_at"]
    assert "ago" in verb("queues").splitlines()[1]
    verb("queues", "resume", "tiny@1")
    assert "ago" not in verb("queues")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        verb("queues", "pause", "nobody@1")
    assert "no queue 'nobody@1'" in refused.value.stderr


@pytest.mark.full
def test_a_second_version_is_made_the_default_and_the_first_is_retired_and_kept_for_its_jobs(
    operator: tuple[list[str], Verb], db: Database, settings: Settings
) -> None:
    _, verb = operator
    register_version(
        db,
        model="tiny",
        runner="fake",
        source="fake",
        digest="2" * 64,
        dtype="none",
        context_window=512,
        files={},
        actor="t",
    )
    for wrong in ("2", "0"):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            verb("models", "alias", "tiny", "default", "2", "--expected", wrong)
        assert "names version 1" in refused.value.stderr
    assert "tiny@default means tiny@2" in verb("models", "alias", "tiny", "default", "2", "--expected", "1")
    assert "tiny@1 is retired" in verb("models", "retire", "tiny@1")
    shown = verb("models", "show", "tiny")
    assert re.search(r"tiny@2 +ready +default", shown)
    assert re.search(r"tiny@1 +retired", shown)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        Verb(verb.env | {"DATABASE_URL": settings.database_url})("models", "delete", "tiny@1")
    assert "tiny@1 has jobs" in refused.value.stderr


@pytest.mark.full
def test_a_version_is_quantized_once_and_its_model_gets_a_bound(
    operator: tuple[list[str], Verb], db: Database, tmp_path: Path
) -> None:
    _, verb = operator
    register_version(
        db,
        model="real",
        runner="torch",
        source="/models/real",
        digest="7" * 64,
        dtype="float32",
        context_window=512,
        files={"config.json": b'{"model_type": "llama"}'},
        actor="t",
    )
    assert verb("models", "quantize", "real", "--scheme", "int8").startswith("real@2 is real@1 in int8; ")
    for scheme, reason in (("int8", "real@2 "), ("int4", "no scheme 'int4'")):
        with pytest.raises(subprocess.CalledProcessError) as refused:
            verb("models", "quantize", "real@1", "--scheme", scheme)
        assert reason in refused.value.stderr
    assert "KL at most 0.02" in verb("models", "bound", "real", "--max-kl", "0.02")
    shown = verb("models", "quality", "real@2")
    assert re.search(r"real@2, registered\n +not measured\n", shown)
    assert "KL at most 0.02" in shown


@pytest.mark.full
@pytest.mark.uses("templates")
def test_a_prompt_template_is_stored_rendered_and_used(operator: tuple[list[str], Verb], tmp_path: Path) -> None:
    _, verb = operator
    file = tmp_path / "guide.json"
    variables = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    file.write_text(orjson.dumps({"instructions": "{{ days }} days in {{ city }}.", "variables": variables}).decode())
    for version in (1, 2):
        assert verb("prompts", "put", "guide", str(file)) == f"guide@{version} is stored\n"
    assert re.search(r"guide +2 +city, days", verb("prompts"))
    assert verb("prompts", "alias", "guide", "default", "1") == "guide@default means guide@1\n"
    assert "aliases: default" in verb("prompts", "show", "guide")
    values = ("--var", "city=Rome = Roma", "--var", "days:=3")
    rendered = verb("prompts", "render", "guide", *values, "--model", "tiny")
    assert rendered.startswith("system: 3 days in Rome = Roma.\n")
    assert "tokens" in rendered
    job = orjson.loads(verb("submit", "hi", "--prompt", "guide@2", *values, "--json"))
    assert (job["template"]["name"], job["template"]["version"]) == ("guide", 2)
    assert "guide@2" in verb("show", job["id"])
    with pytest.raises(subprocess.CalledProcessError) as refused:
        verb("submit", "hi", "--prompt", "guide", "--var", "days=3")
    assert "city" in refused.value.stderr
    file.write_text(orjson.dumps({"instructions": "Be brief."}).decode())
    verb("prompts", "put", "brief", str(file))
    made = verb("models", "prompt", "tiny@1", "brief")
    assert made.startswith("tiny@2 has brief@1")
    assert re.search(r"tiny@2 .*weights of tiny@1.* brief@1", verb("models", "show", "tiny"))
    assert verb("models", "prompt", "tiny@2", "--none") == "tiny@1 has no template\n"
    assert verb("prompts", "delete", "brief") == "brief is deleted\n"
    assert verb("prompts", "unalias", "guide", "default") == "guide@default is removed\n"
    assert verb("prompts", "delete", "guide") == "guide is deleted\n"
    assert verb("prompts").startswith("no prompts")


@pytest.mark.full
def test_a_tool_is_put_listed_and_deleted_by_its_name(operator: tuple[list[str], Verb], tmp_path: Path) -> None:
    _, verb = operator
    file = tmp_path / "weather.yaml"
    for timeout_ms in (500, 600):
        file.write_text(f"url: https://tools.example.com/\nheaders: {{X-Key: s3cr3t}}\ntimeout_ms: {timeout_ms}\n")
        assert re.match("weather .*tool_", verb("tools", "put", "weather", str(file)))
    listed = verb("tools")
    assert re.search(r"weather .*X-Key .*600 ms", listed)
    assert "s3cr3t" not in listed
    assert verb("tools", "delete", "weather") == "weather is deleted\n"
    asked = subprocess.run(
        verb.argv("tools", "put", "tracker", "--mcp", "https://127.0.0.1/mcp"),
        env=verb.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert asked.returncode != 0
    assert "not public" in asked.stderr  # so the API was asked, without a file


@pytest.mark.full
def test_a_call_that_waits_is_listed_and_refused(operator: tuple[list[str], Verb], db: Database) -> None:
    _, verb = operator
    job_id = orjson.loads(verb("submit", "hi", "--json"))["id"]
    with db.begin() as connection:
        owner = str(connection.execute(text("SELECT tenant_id FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one())
    asked = ask_approval(db, owner, job_id)
    assert re.search(rf"{asked} +weather .*pending", verb("approvals"))
    assert verb("approvals", "refuse", asked, "--reason", "too dear").startswith(f"weather of {job_id} ")
    assert verb("approvals").startswith("no calls")
    assert orjson.loads(verb("approvals", "list", "--status", "all", "--json"))[0]["reason"] == "too dear"


@pytest.mark.full
def test_a_job_with_steps_is_submitted_from_a_file(operator: tuple[list[str], Verb], tmp_path: Path) -> None:
    _, verb = operator
    step = {"model": "tiny", "input": {"prompt": "hi"}, "sampling": {"max_tokens": 2}}
    file = tmp_path / "flow.json"
    file.write_bytes(orjson.dumps({"input": {}, "steps": [{**step, "name": "only"}], "metadata": {"order": "1"}}))
    job = orjson.loads(verb("submit", "--job", str(file), "--json"))
    assert (job["task"], job["metadata"]) == ("flow", {"order": "1"})
    assert "step        only queued tiny@1" in verb("job", job["id"])


PIPELINE = """
description: A summary, and its title.
input_schema: {type: object, properties: {text: {type: string}}, required: [text]}
steps:
  - {name: summary, model: tiny, input: {prompt: {$from: input.text}}, sampling: {max_tokens: 2}}
  - {name: title, model: tiny, needs: [summary], input: {prompt: {$from: summary.output.text}}}
"""


@pytest.mark.full
def test_a_pipeline_is_stored_and_drawn(operator: tuple[list[str], Verb], tmp_path: Path) -> None:
    _, verb = operator
    file, picture = tmp_path / "pipeline.yaml", tmp_path / "pipeline.svg"
    file.write_text(PIPELINE)
    for version in (1, 2):
        assert verb("pipelines", "add", "digest", str(file)) == f"digest@{version} is stored\n"
    assert re.search(r"digest +2 +summary, title", verb("pipelines"))
    moved = verb("pipelines", "alias", "digest", "default", "1", "--canary", "2:10")
    assert re.search("digest@1.* 10 %.* digest@2", moved)
    shown = verb("pipelines", "show", "digest@default", "--svg", str(picture)).splitlines()
    assert shown[1:5] == [
        "A summary, and its title.",
        "aliases: default",
        "canary of default: version 2, 10 %",
        "input: text",
    ]
    assert shown[6:] == [
        "  input ─▶ summary  generate, tiny",
        "summary ─▶ title    generate, tiny  the answer",
    ]
    assert picture.read_text().startswith("<svg")
    verb("pipelines", "alias", "digest", "default", "1")
    started = verb("rollout", "start", "digest", "--pipeline", "--to", "2", "--steps", "10:10m")
    assert started.endswith(": 10 % of digest@default goes to version 2\n")
    ended = verb("rollout", "abort", started.partition(":")[0], "--pipeline", "digest")
    assert "is aborted, 0 %" in ended
    assert re.search(r"  digest@default +1 → 2 +aborted", verb("rollout", "list", "--pipeline", "digest"))
    facts = verb("rollout", "show", started.partition(":")[0], "--pipeline", "digest")
    assert "  digest@default: version 1 → 2\n" in facts
    with pytest.raises(subprocess.CalledProcessError) as unset:
        verb("rollout", "start", "digest", "--pipeline", "--to", "2", "--steps", "10:10m", "--shadow")
    assert "HEADRACE_SHADOW_TENANT" in unset.value.stderr
    file.write_text(PIPELINE.replace("model: tiny", "model: nothing"))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        verb("pipelines", "add", "other", str(file))
    assert "nothing" in refused.value.stderr
    assert verb("pipelines", "remove", "digest") == "digest is deleted\n"
