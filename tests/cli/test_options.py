"""Options that exclude each other, and small decisions of the local stack: all before a process starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.local.stack import ServerChoice, served_as
from cli.local.stopping import wait_until_ready
from store.errors import HeadraceError, InvalidRequest, SettingsError, Unavailable
from store.registry.engine_spec import EngineKind
from tests.cli.client.played import Commands, api, headrace

__all__ = ["api", "headrace"]

OWN_ENGINE = "--autoscale is for workers of Headrace's own engine: leave --memory and --engine out"
FOR_SERVERS = "--engine-python and arguments after -- are for an inference server: give --engine too"


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [
        ("up --engine-python /x", SettingsError, FOR_SERVERS),
        ("up --engine native -- --max-model-len 9", SettingsError, FOR_SERVERS),
        (
            "up --engine openai",
            SettingsError,
            "`headrace up` starts no server of the kind openai: `headrace register --url` names yours",
        ),
        (
            "up --memory 4GiB --engine vllm",
            SettingsError,
            "--memory is for models on Headrace's own engine or registered servers: leave --engine out",
        ),
        ("up --autoscale 0..4 --memory 4GiB", SettingsError, OWN_ENGINE),
        ("up --autoscale 0..4 --engine vllm", SettingsError, OWN_ENGINE),
        ("up --autoscale 4..0", SettingsError, "--autoscale: "),
        (
            "host",
            InvalidRequest,
            "give --memory for many models in a budget, or --autoscale for many workers of a model",
        ),
        ("host --memory 1GiB --autoscale", InvalidRequest, "give --memory for many models in a budget"),
        ("models measure folder --against tiny@1", InvalidRequest, "--against and --texts are for a version"),
        ("models measure folder --texts x", InvalidRequest, "--against and --texts are for a version"),
        ("models delete tiny", InvalidRequest, "name a version by its number, such as smollm2@1, not 'tiny'"),
        ("models delete tiny@1234567890", InvalidRequest, "name a version by its number"),
        ("models delete tiny@²", InvalidRequest, "name a version by its number"),
        ("limits set", InvalidRequest, "name a limit to set, such as --requests-per-minute 600"),
        ("retention set", InvalidRequest, "name what to keep for how long, such as --outputs-days 3"),
        ("policy test nowhere.txt", InvalidRequest, "nowhere.txt cannot be read"),
        ("new-task 9lives", InvalidRequest, "a task's name is up to 40 of a-z, 0-9 and _, with a letter first"),
        (f"new-task {'a' * 41}", InvalidRequest, "a task's name is up to 40 of a-z"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    headrace: Commands, line: str, kind: type[HeadraceError], said: str
) -> None:
    with pytest.raises(kind) as refused:
        headrace(line, {})
    assert refused.value.message.startswith(said)


def test_a_policy_is_tried_on_each_line_as_input_and_as_output(headrace: Commands, tmp_path: Path) -> None:
    rules = [
        {"id": "mail", "kinds": ["email"], "action": "redact", "stage": "input"},
        {"id": "word", "deny": {"phrases": ["secret"]}, "action": "block", "stage": "output"},
    ]
    (tmp_path / "policy").write_text(json.dumps({"rules": rules}))
    (tmp_path / "texts").write_text("to ann@example.com\n\na secret\n")
    (first, second) = json.loads(headrace("policy test texts -p policy --json", {}))
    hit = {"kind": "email", "action": "redact", "rule": "mail", "start": 3, "end": 18}
    untouched: dict[str, Any] = {"blocked_by": None, "hits": []}
    assert first == {
        "text": "to ann@example.com",
        "input": {"text": "to <EMAIL_1>", "blocked_by": None, "hits": [hit]},
        "output": untouched | {"text": "to ann@example.com"},
    }
    denied = {"kind": "denied", "action": "block", "rule": "word", "start": 2, "end": 8}
    assert second == {
        "text": "a secret",
        "input": untouched | {"text": "a secret"},
        "output": {"text": "a ", "blocked_by": "word", "hits": [denied]},
    }
    (whole,) = json.loads(headrace("policy test policy --json", {}))
    assert whole["input"]["blocked_by"] is None
    for bad, said in (
        ("{", "policy: : Invalid JSON"),
        ('{"rules": [{"id": "x"}]}', "policy: rules.0.action: Field required"),
    ):
        (tmp_path / "policy").write_text(bad)
        with pytest.raises(InvalidRequest) as refused:
            headrace("policy test texts -p policy", {})
        assert refused.value.message.startswith(said)


def test_a_worker_is_started_by_the_name_that_was_given() -> None:
    class Version:
        model, version = "tiny", 3

    version: Any = Version()
    assert [served_as(asked, version) for asked in ("tiny", "tiny@2", "./folder")] == ["tiny", "tiny@2", "tiny@3"]
    server = ServerChoice(EngineKind.VLLM, None, ("--max-model-len", "9"))
    assert server.options() == ["--engine", "vllm", "--", "--max-model-len", "9"]


def test_programs_that_do_not_get_ready_are_named() -> None:
    class Program:
        child = None

        def __init__(self, name: str, answers: list[bool]) -> None:
            self.name, self.answers = name, answers

        def is_ready(self) -> bool:
            return self.answers.pop() if self.answers else False

    programs: list[Any] = [Program("api", [True]), Program("worker", []), Program("host", [])]
    with pytest.raises(Unavailable) as refused:
        wait_until_ready(programs, -1)
    assert refused.value.message == "not ready after -1 s: worker, host (see the logs)"
    wait_until_ready([programs[0]] * 0, -1)
    ready: list[Any] = [Program("api", [True])]
    wait_until_ready(ready, -1)
