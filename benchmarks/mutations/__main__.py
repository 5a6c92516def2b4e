"""``python -m benchmarks.mutations``: do the tests notice careless changes in the product's code?

``map FOLDER...`` runs tests and records which functions of the product each one calls. ``run FILE...`` makes mutants of
files, changes one file at a time in a copy of the checkout, runs the tests that call the changed function (those of the
module itself first) until one fails, and prints what survived. ``draw N`` takes mutants of the whole product, a file by
its number of lines. A seed gives the same mutants of the same code. One Postgres and one Valkey serve all runs.
Children of tests run the changed code too, but only calls in the test process count in the map.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import hypothesis
import psutil
from sqlalchemy import create_engine, make_url, text

from benchmarks.mutations.mutants import Mutant, mutants
from benchmarks.mutations.places import PACKAGES, ROOT, places_of
from cli.local.postgres import LocalPostgres
from cli.local.valkey import LocalValkey

# Imported once, before the processes of the tests are forked.
_HEAVY = ("torch", "transformers", "fastapi", "celery", "sqlalchemy", "pytest", "hypothesis", "openai", "alembic")
_TIMED_OUT = 124
_mtimes = itertools.count(1_000_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations", description=__doc__)
    parser.add_argument("what", choices=["map", "run", "draw"])
    parser.add_argument("names", nargs="+", help="folders of tests; files of the product, or FILE:LINE; a number")
    parser.add_argument("--map", type=Path, default=Path(tempfile.gettempdir()) / "headrace-touched.jsonl")
    parser.add_argument("--each", type=int, default=10, help="mutants of a file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget", type=float, default=40, help="seconds of tests for one mutant")
    parser.add_argument("--tests", nargs="*", help="run these instead of those in the map")
    parser.add_argument("--skip", type=int, nargs="*", default=[], help="numbers of mutants, such as equivalent ones")
    parser.add_argument("--show", action="store_true", help="only print the mutants")
    given = parser.parse_args()
    with _copy() as tree, _services() as database_url:
        env = {"TOUCHED": str(given.map), "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        os.environ.update(env)  # noqa: TID251 - the environment of pytest, which this program starts
        if given.what == "map":
            _pytest(tree, ["-p", "benchmarks.mutations.touched", *given.names], 3600, sys.stdout)
            return
        tests = _Tests(tree, given.map, given.budget)
        chosen = _drawn(int(given.names[0]), given.seed) if given.what == "draw" else _chosen(given)
        survived = 0
        for number, mutant in enumerate(chosen, 1):
            if number in given.skip:
                continue
            ids = given.tests or tests.of(mutant)
            verdict = "-" if given.show else _judge(tree, mutant, ids, given.budget, database_url)
            survived += verdict == "SURVIVED"
            source = (ROOT / mutant.path).read_text()
            print(
                f"{number:3} {verdict} | {mutant.path}:{mutant.line} {mutant.kind} | {mutant.diff(source)}", flush=True
            )
        print(f"{survived} survived")


def _chosen(given: argparse.Namespace) -> list[Mutant]:
    chosen = []
    for name in given.names:
        path, _, line = name.partition(":")
        found = [mutant for mutant in mutants(ROOT, path) if not line or mutant.line == int(line)]
        rng = random.Random(f"{given.seed} {path}")
        chosen += sorted(rng.sample(found, min(given.each, len(found))), key=lambda mutant: mutant.start)
    return chosen


def _drawn(number: int, seed: int) -> list[Mutant]:
    rng = random.Random(seed)
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split() if name.endswith((".py", ".lua", ".h", ".cpp"))]
    lines = [len((ROOT / name).read_text().splitlines()) for name in files]
    chosen: list[Mutant] = []
    while len(chosen) < number:
        found = mutants(ROOT, rng.choices(files, lines)[0])
        if found and (mutant := rng.choice(found)) not in chosen:
            chosen.append(mutant)
    return chosen


class _Tests:
    """Which tests to run for a mutant, by the map."""

    def __init__(self, tree: Path, path: Path, budget_s: float) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        # The newest entry of a test counts, if the test is still there.
        self._tests = {line["test"]: line for line in lines}
        self._tests = {name: line for name, line in self._tests.items() if (tree / name.split("::")[0]).exists()}
        self._budget_s = budget_s

    def of(self, mutant: Mutant) -> list[str]:
        """Return node ids: of the module's own test file first, then those that call the least else."""
        places = {_short(place) for place in places_of(mutant)}
        package, stem = mutant.path.split("/")[0], Path(mutant.path).stem
        own = [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / package).rglob(f"test_{stem}.py")]
        if mutant.path.startswith(("migrations/", "store/schema/")):
            # A fixture of the whole session migrates, so the map does not know who needs the schema.
            own.append("tests/migrations")
        fitting = [
            line for line in self._tests.values() if line["ok"] and not places.isdisjoint(map(_short, line["calls"]))
        ]
        fitting.sort(key=lambda line: len(line["calls"]))
        others = [line for line in fitting if not line["test"].startswith(tuple(own))]
        spent = itertools.accumulate(line["s"] for line in others)
        found = own + [line["test"] for line, s in zip(others, spent, strict=True) if s < self._budget_s]
        # A folder that was not mapped is run as a whole.
        folders = (f"tests/{folder}" for folder in Path(mutant.path).parents)
        return found or [next(folder for folder in folders if (ROOT / folder).exists())]


def _short(place: str) -> str:
    """Name a place by its folder, so that a map stays good when a function moves to another file there."""
    path, _, function = place.partition(":")
    return f"{'/'.join(path.split('/')[:2])}:{function}"


def _judge(tree: Path, mutant: Mutant, ids: list[str], budget_s: float, database_url: str) -> str:
    if not ids:
        return "NO TESTS"
    source = (ROOT / mutant.path).read_text()
    _disconnect_all(database_url, drop=mutant.path.startswith("migrations/"))
    with tempfile.TemporaryFile("w+") as out:
        try:
            _write(tree / mutant.path, mutant.applied(source))
            code = _pytest(tree, ["-x", "--tb=line", "-p", "no:cacheprovider", *ids], 3 * budget_s + 30, out)
        finally:
            _write(tree / mutant.path, source)
            if mutant.path.startswith("migrations/"):
                _disconnect_all(database_url, drop=True)
        out.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code == 0:
        return "SURVIVED"
    if any(line.startswith("ERROR: not found") for line in lines):
        return "NOT RUN: the map is old"
    if code == _TIMED_OUT:
        return "TIMED OUT"
    return f"noticed by {lines[0].split(' ')[1]}" if lines else f"noticed (exit {code})"


def _write(path: Path, source: str) -> None:
    path.write_text(source)
    # A new time each: Python compares whole seconds and the size with those of its compiled copy.
    stamp = next(_mtimes)
    os.utime(path, (stamp, stamp))


def _pytest(tree: Path, arguments: list[str], limit_s: float, out: IO[str]) -> int:
    """Run pytest in a forked process, with its children ended at the end; 124 if it took too long."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 3  # as pytest after an error of its own
        try:
            code = _run_forked(tree, arguments, out)
        finally:
            # Whatever happened, this process must not run the clean-up of the one that it was forked from.
            os._exit(code)
    deadline = time.monotonic() + limit_s
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            for child in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(signal.SIGKILL)
            os.waitpid(pid, 0)
            return _TIMED_OUT
        time.sleep(0.05)
    return os.waitstatus_to_exitcode(done[1])


def _run_forked(tree: Path, arguments: list[str], out: IO[str]) -> int:
    os.setsid()
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    os.chdir(tree)
    sys.path[:0] = [str(tree)]
    for name in [name for name in sys.modules if name.split(".")[0] in (*PACKAGES, "benchmarks", "tests")]:
        del sys.modules[name]
    # A counterexample need not be small. The profile of tests/conftest.py inherits this.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases)
    hypothesis.settings.load_profile("mutants")
    code: int = __import__("pytest").main(["-q", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments])
    sys.stdout.flush()
    return code


def _disconnect_all(url: str, *, drop: bool) -> None:
    """End the transactions of a killed test, or create the database again."""
    engine = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if drop:
            connection.execute(text("DROP DATABASE test WITH (FORCE)"))
            connection.execute(text("CREATE DATABASE test"))
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'"
        connection.execute(text(others))
    engine.dispose()


@contextlib.contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-mutants-") as folder:
        tree = Path(folder)
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        for name in _HEAVY:
            __import__(name)
        yield tree


@contextlib.contextmanager
def _services() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    folder.chmod(0o755)
    postgres, valkey = LocalPostgres(folder / "pg", folder / "log"), LocalValkey(folder / "kv", folder / "log")
    try:
        postgres.start()
        valkey.start()
        engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in ("CREATE DATABASE test", "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
                connection.execute(text(statement))
        engine.dispose()
        url = make_url(postgres.url).set(database="test").render_as_string(hide_password=False)
        os.environ.update(DATABASE_URL=url, REDIS_URL=valkey.url)  # noqa: TID251 - pytest finds the services there
        yield url
    finally:
        valkey.stop()
        postgres.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
