"""CI starts no containers: every command, port, path and setting of the deployment files is held against the code."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.producer_api.app import create_app
from headrace.store.settings import Settings
from tests.deploy import chart

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FIELDS = {"HEADRACE_" + name.upper(): name for name in Settings.model_fields}
SERVICE_NAMES = {"DATABASE_URL", "REDIS_URL"}
# Images of other projects.
THEIRS = {"postgres", "valkey", "vllm"}
# Ports that only who watches over a process asks.
OWN_PAGES = {
    "headrace.workers": "HEADRACE_WORKER_METRICS_PORT",
    "headrace.workers.dispatcher": "HEADRACE_DISPATCHER_PORT",
    "headrace.features.hosts": "HEADRACE_HOST_PORT",
}
LOCKS = {"Dockerfile.control": {"control"}, "Dockerfile.worker": {"worker", "torch"}}


@dataclass
class Unit:
    """One container, wherever it is declared."""

    where: str
    command: list[str]
    env: dict[str, str | None]  # None: the value comes from a secret
    ports: list[int] = field(default_factory=list)


def _substituted(value: Any) -> str:
    """A compose value with its ``${NAME:-default}`` and ``${NAME:?message}`` filled in as an operator would."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))
    return re.sub(r"\$\{\w+:\?[^}]*\}", "user:password", text)


def _compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def _compose_units() -> Iterator[Unit]:
    for name, service in _compose().items():
        if name in THEIRS:
            continue
        yield Unit(
            where=f"compose.yaml {name}",
            command=[_substituted(part) for part in service["command"]],
            env={key: _substituted(value) for key, value in service["environment"].items()},
            ports=[int(mapping.rsplit(":", 1)[1]) for mapping in service.get("ports", [])],
        )


def _chart_containers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for obj in chart.objects(chart.EVERYTHING):
        if obj["kind"] in {"Deployment", "Job"}:
            pod = obj["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield f"chart {obj['metadata']['name']}", pod, container


def _chart_groups() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for obj in chart.objects(chart.WITH_NODES):
        for pod in chart.pods_of_group(obj):
            yield f"chart {pod['metadata']['name']}", pod["spec"], pod["spec"]["containers"][0]


def _chart_units() -> Iterator[Unit]:
    for where, _, container in _chart_containers():
        if container["name"] in THEIRS:
            continue
        yield Unit(
            where=where,
            command=container["command"],
            env={entry["name"]: entry.get("value") for entry in container["env"]},
            ports=[port["containerPort"] for port in container.get("ports", [])],
        )


def _dockerfile(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (DEPLOY / name).read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines]


def _image_units() -> Iterator[Unit]:
    for name in ("Dockerfile.control", "Dockerfile.worker"):
        env: dict[str, str | None] = {}
        command: list[str] = []
        ports: list[int] = []
        for instruction, rest in _dockerfile(name):
            if instruction == "ENV":
                env |= dict(pair.split("=", 1) for pair in rest.split())
            elif instruction == "CMD":
                command = json.loads(rest)
            elif instruction == "EXPOSE":
                ports = [int(port) for port in rest.split()]
        yield Unit(where=name, command=command, env=env, ports=ports)


UNITS = [*_compose_units(), *_chart_units(), *_image_units()]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.where)
def test_every_command_is_a_module_that_can_be_run(unit: Unit) -> None:
    assert unit.command[:2] == ["python", "-m"]
    module = unit.command[2]
    assert module.startswith("headrace."), "the image has no other name on its path"
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    if spec.submodule_search_locations is not None:
        assert importlib.util.find_spec(f"{module}.__main__") is not None
    else:
        assert 'if __name__ == "__main__":' in Path(str(spec.origin)).read_text()


@pytest.mark.parametrize("unit", list(_image_units()), ids=lambda unit: unit.where)
def test_files_of_the_working_folder_are_not_imported(unit: Unit) -> None:
    assert unit.env["PYTHONSAFEPATH"] == "1"


def _words(unit: Unit) -> tuple[str, ...]:
    """The module with its verb and options, without their values."""
    module, *arguments = unit.command[2:]
    return (module, *(word for word in arguments if word.startswith("-") or word == "register"))


@pytest.mark.timeout(300)  # it imports a program in a process of its own
@pytest.mark.parametrize("words", sorted({_words(unit) for unit in UNITS if unit.command[3:]}), ids=" ".join)
def test_every_argument_is_one_the_module_takes(words: tuple[str, ...]) -> None:
    module, *given = words
    verbs = [word for word in given if not word.startswith("-")]
    result = subprocess.run(
        [sys.executable, "-m", module, *verbs, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in given if word.startswith("-")), result.stdout


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.where)
def test_every_setting_exists_and_its_value_parses(unit: Unit) -> None:
    ours = {key: value for key, value in unit.env.items() if key.startswith("HEADRACE_")}
    assert set(ours) <= set(FIELDS), set(ours) - set(FIELDS)
    given = {FIELDS[key]: value for key, value in ours.items() if value is not None}
    assert Settings(**given)
    needed = {"REDIS_URL"} if "headrace.workers.flower" in unit.command else SERVICE_NAMES
    assert needed <= set(unit.env) or unit.where.startswith("Dockerfile")


def test_whoever_seals_or_opens_can_be_given_the_keys() -> None:
    deployed = [unit for unit in UNITS if not unit.where.startswith("Dockerfile")]
    modules = {
        "headrace.producer_api",
        "headrace.workers",
        "headrace.workers.dispatcher",
        "headrace.features.hosts",
        "headrace.cli.main",
    }
    sealing = [unit for unit in deployed if unit.command[2] in modules]
    assert {unit.command[2] for unit in sealing} == modules
    assert [unit.where for unit in sealing if "HEADRACE_ENCRYPTION_KEYS" not in unit.env] == []


def test_flower_is_given_redis_and_its_own_settings_alone() -> None:
    units = [unit for unit in UNITS if "headrace.workers.flower" in unit.command]
    assert len(units) == 2
    names = {"REDIS_URL", "HEADRACE_FLOWER_BASIC_AUTH", "HEADRACE_FLOWER_HOST", "HEADRACE_FLOWER_PORT"}
    assert [set(unit.env) for unit in units] == [names, names]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.where)
def test_every_port_is_the_one_the_process_listens_on(unit: Unit) -> None:
    listening = {
        "headrace.producer_api": int(unit.env.get("HEADRACE_API_PORT") or Settings().api_port),
        "headrace.workers.flower": int(unit.env.get("HEADRACE_FLOWER_PORT") or Settings().flower_port),
    }
    if unit.where == "Dockerfile.control":
        assert sorted(unit.ports) == sorted(listening.values())
    elif unit.where.startswith("chart") and unit.command[2] in OWN_PAGES:
        assert unit.env["HEADRACE_HEALTH_HOST"] == "0.0.0.0", "else no probe reaches it"
        assert unit.ports == [int(unit.env[OWN_PAGES[unit.command[2]]] or 0)]
    else:
        assert unit.ports == ([listening[unit.command[2]]] if unit.command[2] in listening else [])


@pytest.mark.timeout(300)  # it imports the API in a process of its own, which takes over a minute at a load of 20
def test_every_probe_asks_a_route_that_exists() -> None:
    settings = Settings(database_url="postgresql://nobody@localhost/none", redis_url="redis://localhost")
    routes = set(create_app(settings).openapi()["paths"])
    probes = [
        container[kind]["httpGet"]["path"]
        for _, _, container in _chart_containers()
        for kind in ("livenessProbe", "readinessProbe")
        if kind in container and container["name"] not in THEIRS
    ]
    asked = {
        name: re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", str(service["healthcheck"]["test"]))
        for name, service in _compose().items()
        if "healthcheck" in service and name != "vllm"
    }
    assert asked == {
        "postgres": [],
        "valkey": [],
        "api": [("8000", "/readyz")],
        "worker": [("9100", "/readyz")],
        "gpu-worker": [("9100", "/readyz")],
        "vllm-worker": [("9100", "/readyz")],
        "dispatcher": [("9101", "/readyz")],
        "flower": [("5555", "/healthcheck")],
    }
    # What Flower answers without its password is tested in tests/workers/test_flower.py, a worker's in its own tests.
    assert set(probes) - {"/healthcheck"} == {"/healthz", "/readyz"} <= routes


@pytest.mark.parametrize("name", ["Dockerfile.control", "Dockerfile.worker"])
def test_images_copy_every_package_and_install_what_is_locked(name: str) -> None:
    copied = {
        source
        for instruction, rest in _dockerfile(name)
        if instruction == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied), copied
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.removesuffix("*") for pattern in patterns}
    assert packages <= copied
    installs = [line for _, rest in _dockerfile(name) for line in re.findall(r"pip install [^;&]+", rest)]
    locked = [line for line in installs if "--require-hashes" in line]
    assert {found[1] for line in locked if (found := re.search(r"-r locks/(\w+)\.txt", line))} == LOCKS[name]
    assert all("--no-deps --require-hashes --only-binary=:all:" in line for line in locked)
    # Beside them the project itself, which brings nothing along, and torch from an index that the builder names.
    others = [line.split("--no-cache-dir ")[1].strip() for line in installs if line not in locked]
    ours = [line for line in others if "TORCH_INDEX" not in line]
    own = "--no-deps --no-build-isolation ." if name == "Dockerfile.control" else "--no-deps --no-index /wheels/*.whl"
    assert {line.removesuffix(" \\") for line in ours} == {own}


@pytest.mark.parametrize("name", ["Dockerfile.control", "Dockerfile.worker"])
def test_images_run_as_an_ordinary_user(name: str) -> None:
    assert ("USER", "10001") in _dockerfile(name)


def test_every_pod_is_within_the_restricted_standard() -> None:
    """Kubernetes' Pod Security Standards, `restricted`, and a root that cannot be written."""
    for where, pod, container in (*_chart_containers(), *_chart_groups()):
        ours = pod["securityContext"]
        assert (ours["runAsNonRoot"], ours["runAsUser"], ours["runAsGroup"]) == (True, 10001, 10001), where
        assert ours["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
            "emptyDir",
            "persistentVolumeClaim",
        }, where
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod), where
        assert pod["automountServiceAccountToken"] is False, where
        assert set(container["resources"]) == {"requests", "limits"}, where


def test_no_service_becomes_a_setting() -> None:
    """Kubernetes would give a pod HEADRACE_API_PORT for a Service headrace-api; unknown settings stop a process."""
    assert all(pod["enableServiceLinks"] is False for _, pod, _ in (*_chart_containers(), *_chart_groups()))


def test_accounts_exist_and_have_no_token() -> None:
    objects = chart.objects(chart.EVERYTHING)
    accounts = {obj["metadata"]["name"]: obj for obj in objects if obj["kind"] == "ServiceAccount"}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    used = {name for _, pod, _ in _chart_containers() if (name := pod.get("serviceAccountName"))}
    assert used == set(accounts)


def test_every_service_is_hardened() -> None:
    for name, service in _compose().items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["pids_limit"], name
        assert service["read_only"] is True, name
        assert "cap_add" not in service, name
        # Ours name theirs in the image.
        assert name not in THEIRS or not service["user"].startswith("0"), name


def test_postgres_and_valkey_stand_in_a_network_without_a_way_out() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert document["networks"]["inside"] == {"internal": True}
    joined = {name: set(service["networks"]) for name, service in document["services"].items()}
    assert {name for name, networks in joined.items() if networks == {"inside"}} == {
        *THEIRS,
        "migrate",
        "operator",
        "register",
        "worker",
        "gpu-worker",
        "vllm-register",
        "vllm-worker",
    }
    assert {name for name, networks in joined.items() if "outside" in networks} == {"api", "dispatcher", "flower"}
    assert all(
        mapping.startswith("127.0.0.1:")
        for service in document["services"].values()
        for mapping in service.get("ports", [])
    )


@pytest.mark.parametrize("container", ["chart", "compose"])
def test_what_a_worker_compiles_has_a_place_to_lie(container: str) -> None:
    """On a read-only root the kernels would not be built, and torch, which is slower, would do the work unnoticed."""
    place = "/var/lib/headrace/native"
    if container == "compose":
        # A volume, since Docker's tmpfs may be mounted noexec.
        assert f"native:{place}" in _compose()["worker"]["volumes"]
        assert any(place in rest for instruction, rest in _dockerfile("Dockerfile.worker") if instruction == "RUN")
    else:
        worker = next(found for where, _, found in _chart_containers() if where == "chart demo-worker")
        mount = next(mount for mount in worker["volumeMounts"] if mount["mountPath"] == place)
        assert not mount.get("readOnly")


def test_each_process_is_given_longer_to_stop_than_it_takes_to_drain() -> None:
    worker = _compose()["worker"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > float(worker["environment"]["HEADRACE_DRAIN_S"])
    draining = dict[str, int]()
    for where, pod, container in _chart_containers():
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        if "HEADRACE_DRAIN_S" in env:
            before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
            assert before[0] == "sleep", where
            draining[where] = pod["terminationGracePeriodSeconds"] - int(env["HEADRACE_DRAIN_S"] or 0) - int(before[1])
    assert {f"chart demo-{name}" for name in ("api", "worker", "worker-chat", "engine-worker", "host")} <= set(draining)
    assert min(draining.values()) >= 10, draining


def test_a_model_host_has_a_place_for_the_logs_of_its_workers() -> None:
    host = next(container for where, _, container in _chart_containers() if where == "chart demo-host")
    home = next(unit.env["HEADRACE_HOME"] for unit in _image_units() if unit.where == "Dockerfile.worker")
    assert {f"{home}/logs", f"{home}/native"} <= {
        one["mountPath"] for one in host["volumeMounts"] if not one.get("readOnly")
    }


def test_the_engine_and_its_workers_speak_of_one_server() -> None:
    containers = {where: container for where, _, container in _chart_containers()}
    served, registered = containers["chart demo-engine"], containers["chart demo-engine-register"]["command"]
    assert registered[registered.index("--url") + 1] == "http://demo-engine:8000"
    assert registered[registered.index("--tokenizer") + 1] == served["command"][2]
    name = served["command"][served["command"].index("--served-model-name") + 1]
    assert registered[registered.index("--served-model") + 1] == name
    compose = {name: [_substituted(word) for word in _compose()[name]["command"]] for name in ("vllm", "vllm-register")}
    assert compose["vllm"][compose["vllm"].index("--served-model-name") + 1] == compose["vllm-register"][4]
    for command in (served["command"], compose["vllm"]):
        assert {"--enable-scale-out", "--scheduling-policy", "--tensor-parallel-size"} < set(command)


def test_valkey_never_evicts_a_hint() -> None:
    command = _compose()["valkey"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_services_that_depend_on_others_name_them() -> None:
    services = _compose()
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
