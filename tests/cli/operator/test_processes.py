"""Verbs that become another program of Headrace: which one, with which words."""

import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli.local.home import Home, StackRecord
from headrace.cli.operator import admin
from headrace.cli.tree import app
from headrace.store.db.roles import API, OPERATOR, WORKER

_ALL_OPTIONS = (
    "--dtype auto --sampling top_k=1 --golden g --engine vllm --task own --source s --hub org/x --base b@1 "
    "--url http://h --served-model m --tokenizer t --adapter a --revision r --quantization q "
    "--context-window 9 --accepts images"
)


@pytest.mark.parametrize(
    ("typed", "became"),
    [
        ("api", "headrace.producer_api"),
        ("dispatcher", "headrace.workers.dispatcher"),
        ("worker --model tiny", "headrace.workers --model tiny"),
        ("worker --model a@1 --concurrency 3 --name w", "headrace.workers --model a@1 --concurrency 3 --name w"),
        ("migrate upgrade", "headrace.migrations upgrade"),
        ("migrate roles", "headrace.migrations roles"),
        ("migrate history", "headrace.migrations history"),
        ("migrate check", "headrace.migrations check"),
        ("migrate vectors", "headrace.migrations vectors"),
        ("worker --model a --engine native", "headrace.workers --model a"),
        ("worker --model a --engine vllm -- --x 1", "headrace.workers --model a --engine vllm -- --x 1"),
        (
            "host --memory 4GiB --sleep-memory 2GiB --models a,b --name h",
            "headrace.features.hosts --memory 4GiB --sleep-memory 2GiB --models a,b --name h",
        ),
        ("host --autoscale", "headrace.features.hosts --autoscale"),
        ("models measure folder", "headrace.models.catalog measure folder"),
        ("models measure folder --json", "headrace.models.catalog measure folder --json"),
        (
            "plan history:tiny --workers 0..3 --wait-s 5 --json",
            "headrace.features.planner history:tiny --workers 0..3 --wait-s 5.0 --json",
        ),
        (
            "plan bursty --rates r --against a --fixed 1,2 --worker-hour 3 --within 4 --jobs 5 --hours 6 "
            "--prompt-tokens 7 --output-tokens 8 --seed 9 --picture p",
            "headrace.features.planner bursty --rates r --against a --fixed 1,2 --worker-hour 3.0 --within 4.0 "
            "--jobs 5 --hours 6.0 --prompt-tokens 7 --output-tokens 8 --seed 9 --picture p",
        ),
        ("register tiny folder", "headrace.models.catalog register tiny folder --dtype auto"),
        (
            "models register tiny folder --dtype int8 --sampling top_p=0.9 --json",
            "headrace.models.catalog register tiny folder --dtype int8 --sampling top_p=0.9 --json",
        ),
        (
            f"register tiny {_ALL_OPTIONS} --batch-invariant",
            f"headrace.models.catalog register tiny {_ALL_OPTIONS} --batch-invariant",
        ),
        ("register tiny f --engine native", "headrace.models.catalog register tiny f --dtype auto"),
    ],
)
def test_a_verb_becomes_its_program(typed: str, became: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_module(*words: str) -> None:
        ran.extend(words)
        raise SystemExit(7)

    monkeypatch.setattr(admin, "run_module", run_module)
    # The handlers of this process stay.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert CliRunner().invoke(app, typed.split()).exit_code == 7
    assert " ".join(ran) == became


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("headrace.producer_api", API),
        ("headrace.workers", WORKER),
        ("headrace.workers.dispatcher", WORKER),
        ("headrace.features.hosts", WORKER),
        ("headrace.features.planner", OPERATOR),
        ("headrace.models.catalog", OPERATOR),
        ("headrace.migrations", "app"),
    ],
)
def test_each_program_logs_in_to_the_stacks_database_as_its_own_role(
    module: str, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    ran: list[tuple[str, list[str]]] = []
    adopted: dict[str, str] = {}
    monkeypatch.setattr(
        "headrace.cli.operator.admin.runpy.run_module", lambda name, **_: ran.append((name, list(sys.argv)))
    )
    monkeypatch.setattr(admin, "adopt_environment", adopted.update)
    monkeypatch.setattr(sys, "argv", ["headrace"])
    with Home(tmp_path).locked():
        Home(tmp_path).write_record(
            StackRecord(
                database_url="postgresql+psycopg://app@/postgres?host=s",
                has_roles=True,
                redis_url="unix://v",
                api_url="a",
                flower_url="f",
                models=[],
            )
        )
        with pytest.raises(SystemExit) as ended:
            admin.run_module(module, "--x", "1")
    assert ended.value.code == 0
    assert ran == [(module, [module, "--x", "1"])]
    assert adopted == {
        "DATABASE_URL": f"postgresql+psycopg://{role}@/postgres?host=s",
        "REDIS_URL": "unix://v",
        "HEADRACE_HOME": str(tmp_path),
    }
