"""A real Prometheus that scrapes a cluster of the chaos tests and evaluates the alerts, with shortened times."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from headrace.store.child_process import Child, Command
from headrace.store.ports import free_port
from tests.chaos.cluster import ROOT, Cluster, Member

RULES = ROOT / "deploy" / "prometheus" / "headrace.rules.yaml"
_UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"
# A fault lasts seconds, so windows are seconds too, and every pending time is two.
_FOR = "2s"
_WINDOW = "40s"
_LONG_WINDOW = "120s"
KINDS = ("api", "worker", "dispatcher", "host")


def program(name: str) -> str | None:
    """Return the path of ``prometheus`` or ``promtool``: unpacked by ``make build/prometheus``, or installed."""
    unpacked = _UNPACKED / name
    return str(unpacked) if unpacked.exists() else shutil.which(name)


def all_rules() -> list[dict[str, Any]]:
    """Return the alerts of the file, as they are."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def shortened(rules: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the alerts with short windows and pending times; the thresholds stay."""
    short = []
    for rule in rules:
        expr = re.sub(r"\[(\d+)m\]", lambda found: f"[{_LONG_WINDOW if int(found[1]) > 10 else _WINDOW}]", rule["expr"])
        short.append({**rule, "expr": expr.replace("[1h]", f"[{_WINDOW}]"), **({"for": _FOR} if "for" in rule else {})})
    return short


class Prometheus:
    """The server. ``firing`` asks it which alerts fire now; ``follow`` says what it scrapes."""

    def __init__(self, port: int, targets: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._targets = targets

    def follow(self, members: Sequence[Member]) -> None:
        """Scrape these processes from now on."""
        write_targets(self._targets, members)

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        try:
            alerts = httpx2.get(f"{self._url}/alerts", timeout=5, trust_env=False).json()["data"]["alerts"]
        except (httpx2.TransportError, ValueError):
            return set()
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def is_scraping(self) -> bool:
        """Return True if every target answers."""
        try:
            targets = httpx2.get(f"{self._url}/targets", timeout=5, trust_env=False).json()["data"]["activeTargets"]
        except (httpx2.TransportError, ValueError):
            return False
        return bool(targets) and all(target["health"] == "up" for target in targets)


@contextmanager
def running_prometheus(cluster: Cluster) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes every member each second. Raises FileNotFoundError without the program."""
    binary = program("prometheus")
    if binary is None:
        raise FileNotFoundError("no prometheus: run make build/prometheus, or install the package prometheus")
    folder = cluster.folder / "prometheus"
    folder.mkdir()
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": shortened(all_rules())}]}))
    targets = folder / "targets"
    targets.mkdir()
    write_targets(targets, cluster.members)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(_config(targets)))
    port = free_port("127.0.0.1", 0)
    argv: list[str | Path] = [
        binary,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    child = Child(Command("prometheus", argv, cluster.log_of("prometheus"), env={}, cwd=folder))
    try:
        yield Prometheus(port, targets)
    finally:
        child.kill()


def write_targets(folder: Path, members: Sequence[Member]) -> None:
    """Write one file for each kind of process. Prometheus notices a new file; it replaces the old one at once."""
    for kind in KINDS:
        addresses = [f"127.0.0.1:{one.port}" for one in members if one.kind == kind]
        path, new = folder / f"{kind}.json", folder / f"{kind}.new"
        text = json.dumps([{"targets": addresses}])
        if not path.exists() or path.read_text() != text:
            new.write_text(text)
            new.rename(path)


def _config(targets: Path) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": f"headrace-{kind}", "file_sd_configs": [{"files": [str(targets / f"{kind}.json")]}]}
            for kind in KINDS
        ],
    }


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``promtool``; the caller has checked that it is there."""
    return subprocess.run(
        [program("promtool") or "promtool", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
