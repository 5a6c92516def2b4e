"""The chart by Helm itself: ``make chart``. Lints it, renders it with several values, checks every object's schema.

The tests render with a small reader of their own (``chart.py``), which is fast and needs nothing; here its rendering of
the default values and of a vLLM is compared with Helm's, so that the tests are valid for the chart. Nothing is
installed into a cluster. Custom resources are checked by ``custom_resources.json``, and their pods as pods.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import chart

# Each turns some of the templates' conditions round.
VALUES: dict[str, list[str]] = {
    "default": [],
    "object store": ["files.url=s3://bucket/prefix", "files.claim=", "serviceAccounts.api.role=x"],
    "no Flower, open network": ["flower.enabled=false", "networkPolicy.enabled=false"],
    "traces": ["tracing.endpoint=http://collector:4318", "networkPolicy.tracing.to[0].ipBlock.cidr=10.4.0.0/16"],
    "KEDA": [],
    "a vLLM": [],
    "a vLLM in each pod": [],
    "many models": [],
    "a vLLM on several nodes": [],
    "a Gateway and Prometheus and places": [],
    "own server": [
        "engine.enabled=true",
        "engine.server.enabled=false",
        "engine.url=http://gpu.inference:8000",
        "networkPolicy.engine.to[0].ipBlock.cidr=10.3.0.0/16",
        "networkPolicy.metrics.from[0].namespaceSelector.matchLabels.name=monitoring",
    ],
    "own peers": [
        "networkPolicy.api.from=null",
        "networkPolicy.metrics.from[0].namespaceSelector.matchLabels.name=monitoring",
        "networkPolicy.flower.from[0].namespaceSelector.matchLabels.name=operators",
        "networkPolicy.postgres.to[0].ipBlock.cidr=10.1.0.0/16",
        "networkPolicy.redis.to[0].ipBlock.cidr=10.2.0.0/16",
        "networkPolicy.redis.sentinelPort=26379",
    ],
}

# Those with lists, which `--set` would write badly; what the tests' reader makes of them is compared with Helm's.
COMPARED: dict[str, dict[str, Any]] = {
    "default": {},
    "KEDA": chart.WITH_AUTOSCALING,
    "a vLLM": chart.WITH_SERVER | {"worker": {"enabled": False}},
    "a vLLM in each pod": chart.WITH_SIDECAR,
    "many models": chart.WITH_MORE,
    "a vLLM on several nodes": chart.WITH_NODES,
    "a Gateway and Prometheus and places": chart.WITH_PLACES,
}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}


def main() -> int:
    """Check the chart; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy")
    parser.add_argument("--helm", required=True, help="Helm's program")
    parser.add_argument("--validate", required=True, help="kubernetes-validate's program")
    options = parser.parse_args()
    _run(options.helm, "lint", "--strict", str(chart.CHART))
    for name, changes in VALUES.items():
        words = [word for change in changes for word in ("--set", change)]
        if name in COMPARED:
            given = Path("build") / f"values {name}.yaml"
            given.write_text(yaml.safe_dump(COMPARED[name]))
            words += ["--values", str(given)]
        rendered = _run(options.helm, "template", "demo", str(chart.CHART), *words)
        objects = [document for document in yaml.safe_load_all(rendered) if document]
        # The validator has the schemas of Kubernetes alone.
        known = [obj for obj in objects if not chart.is_custom(obj)]
        known += [pod for obj in objects if chart.is_custom(obj) for pod in chart.pods_of_group(obj)]
        for obj in objects:
            if chart.is_custom(obj) and (wrong := chart.complaint(obj)):
                sys.exit(f"{obj['kind']} {obj['metadata']['name']}: {wrong}")
        path = Path("build") / f"chart {name}.yaml"
        path.write_text(yaml.safe_dump_all(known))
        said = _run(options.validate, "--strict", str(path))
        if said.count(" passed ") != len(known):
            sys.exit(said)
        if name in COMPARED and _by_name(objects) != _by_name(chart.objects(COMPARED[name])):
            sys.exit("Helm renders something else than tests/deploy/chart.py")
        sys.stdout.write(f"{name}: {len(objects)} objects\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
