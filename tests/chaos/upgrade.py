"""An upgrade under load, blue to green: ``python -m tests.chaos --upgrade-from COMMIT``.

Blue is an older commit, green is this tree; both use one database and one Redis. Blue makes its schema and serves.
Green's revisions are applied while blue serves, green's processes start beside blue's, customers are led to green, back
to blue and to green again, and blue's processes end by SIGTERM, one after the other. Customers submit all the time. The
checker of every other run judges what they saw, and an answer of 500 is a violation here.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psycopg

from headrace.store.settings import child_environment
from tests.chaos.checker import Findings, check
from tests.chaos.cluster import ROOT, Cluster, Member, Shape, Tenant, running_cluster
from tests.chaos.faults import unpack_old_release
from tests.chaos.history import History
from tests.chaos.journal import Journal
from tests.chaos.measures import phase_times, phases
from tests.chaos.report import Json
from tests.chaos.soak import Run, Say, database_of, start_receiver

_MEMBERS = (("dispatcher", 1), ("worker", 2), ("api", 2))
_STEP_S = 20.0
_MIGRATE_S = 300.0
_END_S = 60.0
_REVISION = "SELECT version_num FROM alembic_version"

# Runs in blue's tree: its own code makes the schema, registers the model, and makes tenants and keys.
_PREPARE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from tests.chaos.cluster import Cluster
database_url, redis_url, folder = sys.argv[1:]
blue = SimpleNamespace(database_url=database_url, redis_url=redis_url, folder=Path(folder), tenants=[])
Cluster._prepare(blue)
print(json.dumps([asdict(one) for one in blue.tenants]))
"""


class BlueFirst(Cluster):
    """A cluster whose database an older commit makes. Raises ValueError if git has no such commit."""

    def __init__(self, folder: Path, shape: Shape, journal: Journal, commit: str) -> None:
        super().__init__(folder, shape, journal)
        blue_root = unpack_old_release(folder / "blue", commit)
        if blue_root is None:
            raise ValueError(f"git has no commit {commit}")
        self.blue_root = blue_root

    def _prepare(self) -> None:
        argv = [sys.executable, "-c", _PREPARE, self.database_url, self.redis_url, str(self.folder)]
        done = subprocess.run(argv, cwd=self.blue_root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"blue did not make its schema: {done.stderr[-2000:]}")
        self.tenants += [Tenant(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def upgrade(*, commit: str, seed: int, rate: float, say: Say, shape: Shape) -> tuple[Json, Findings]:
    """Run the upgrade; return the report and the violations. Raises ValueError if git has no such commit."""
    empty = Shape(0, 0, 0, shape.settings, has_marks=False, has_private_mounts=shape.has_private_mounts)
    logs = ROOT / "build" / "chaos" / "upgrade"
    with running_cluster(empty, keep_logs=logs, kind=partial(BlueFirst, commit=commit)) as cluster:
        assert isinstance(cluster, BlueFirst)
        run = Run(cluster, seed, say, start_receiver(cluster))
        blue = start(cluster, "blue", cluster.blue_root)
        load = run.let_in(rate)
        phase(run, "blue alone", revision_of(cluster))
        run.wait(_STEP_S)
        phase(run, "expand", revision_of(cluster))
        migrate_s = expand(run)
        run.wait(_STEP_S / 2)
        phase(run, "both", revision_of(cluster))
        green = start(cluster, "green", ROOT)
        load.load.lead_to(cluster.api_urls)
        run.wait(_STEP_S)
        for name, colour in (("led to green", green), ("back to blue", blue), ("blue ends", green)):
            phase(run, name, revision_of(cluster))
            load.load.lead_to(urls_of(colour))
            run.wait(_STEP_S / 2)
        # The order of docs/deployment.md: the APIs first, the dispatcher last.
        codes = {member.name: end(run, member) for member in reversed(blue)}
        phase(run, "green alone", revision_of(cluster))
        run.wait(_STEP_S)
        history = run.finish()
        findings = check(history, needs_kills=False, needs_stale=False, forbids_500=True)
        figures: Json = {"blue": commit, "expand_s": round(migrate_s, 1), "blue_exit_codes": codes}
        figures |= {"phases": phases(history), "attempts": attempts_of(history, [one.name for one in blue])}
        return run.report(findings, run="upgrade", **figures), findings


def start(cluster: Cluster, colour: str, root: Path) -> list[Member]:
    """Start all processes of a release, and return them when they serve."""
    added = [
        cluster.add(kind, f"{colour}-{kind}-{n + 1}", root=root, is_old=root != ROOT)
        for kind, count in _MEMBERS
        for n in range(count)
    ]
    cluster.wait_ready()
    return added


def urls_of(members: list[Member]) -> list[str]:
    """Addresses of the APIs among these processes."""
    return [f"http://127.0.0.1:{one.port}" for one in members if one.kind == "api"]


def expand(run: Run) -> float:
    """Apply green's revisions while blue serves; return the seconds. Raises RuntimeError if they fail."""
    began = time.monotonic()
    env = child_environment({"DATABASE_URL": run.cluster.database_url, "REDIS_URL": run.cluster.redis_url})
    argv = [sys.executable, "-m", "headrace.migrations", "roles"]
    with (run.cluster.folder / "logs" / "expand.log").open("wb+") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None and time.monotonic() - began < _MIGRATE_S:
            run.turn()
        process.kill()
        if process.wait() != 0:
            log.seek(0)
            raise RuntimeError(f"green's revisions failed: {log.read()[-2000:].decode(errors='replace')}")
    return time.monotonic() - began


def end(run: Run, member: Member) -> int | None:
    """Ask a process to end and wait; return its exit code, None if it had to be left running."""
    member.keep = False
    assert member.child is not None
    os.kill(member.child.pid, signal.SIGTERM)
    until = time.monotonic() + _END_S
    while member.child.exit_code is None and time.monotonic() < until:
        run.turn()
    return member.child.exit_code


def phase(run: Run, name: str, revision: str) -> None:
    """Begin a phase of the report."""
    run.say(f"{name} (schema {revision})")
    run.cluster.journal.write("phase", name=name, revision=revision)


def revision_of(cluster: Cluster) -> str:
    """The newest revision of the schema that was applied."""
    with psycopg.connect(**database_of(cluster)) as connection:
        row = connection.execute(_REVISION).fetchone()
    return str(row[0]) if row else ""


def attempts_of(history: History, blue: list[str]) -> Json:
    """Count the attempts of each colour's workers by outcome, and those of blue that began beside green."""
    counts: Counter[str] = Counter()
    both_at = phase_times(history)["both"]
    for one in history.attempts:
        is_blue = one.worker.partition("@")[0] in blue
        counts[f"{'blue' if is_blue else 'green'} {one.outcome}"] += 1
        counts["blue, while both served"] += is_blue and one.started_at >= both_at
    return dict(counts)
