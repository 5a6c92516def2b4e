"""Alerts and dashboards use exported metrics, each alert has a runbook and a fault, and promtool takes the rules."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from headrace.store.settings import Settings
from tests.alerts import companions
from tests.alerts.cases import CASES
from tests.alerts.prometheus import RULES, all_rules, program, run_promtool
from tests.metric_names import documented, rows, used_in

ROOT = Path(__file__).parents[2]
EXPORTED = (
    documented("API")
    | documented("Worker")
    | documented("Dispatcher")
    | documented("Model host")
    | documented("Webhooks")
    | documented("Rollouts")
)
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))


def test_each_alert_has_a_runbook_a_fault_and_its_place_in_the_table_of_metrics() -> None:
    alerts = {rule["alert"]: rule for rule in all_rules()}
    sections = (ROOT / "docs" / "runbook.md").read_text().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(alerts)
    assert all("**Means**" in section and "**Do**" in section for section in sections)
    assert list(CASES) == list(alerts)
    assert companions.named() <= set(alerts)
    tabled = {(alert, name) for row in rows() for alert in row.alerts for name in row.names}
    assert {alert for alert, _ in tabled} | {"HeadraceApiDown", "HeadraceWorkerDown", "HeadraceDispatcherDown"} == set(
        alerts
    )
    for name, rule in alerts.items():
        used = used_in(rule["expr"])
        assert used <= EXPORTED, name
        assert used == {metric for alert, metric in tabled if alert == name}, name
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_the_alerts_name_the_jobs_of_the_scrape_configuration_and_it_the_ports_of_compose() -> None:
    scraped = yaml.safe_load(RULES.with_name("prometheus.yaml").read_text())["scrape_configs"]
    named = {job for rule in all_rules() for job in re.findall(r'job="([\w-]+)"', rule["expr"])}
    assert named == {one["job_name"] for one in scraped}
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for one in scraped:
        (target,) = one["dns_sd_configs"]
        (name,) = target["names"]
        service = services[name]
        ports = {port.rpartition(":")[2] for port in service.get("ports", ())}
        ports |= {value for setting, value in service["environment"].items() if setting.endswith("_PORT")}
        assert str(target["port"]) in ports, name


def test_the_configuration_for_one_machine_has_the_same_jobs_and_the_ports_of_the_document() -> None:
    compose, local = (
        yaml.safe_load(RULES.with_name(name).read_text())["scrape_configs"]
        for name in ("prometheus.yaml", "local.yaml")
    )
    assert [one["job_name"] for one in local] == [one["job_name"] for one in compose]
    section = (ROOT / "docs" / "metrics.md").read_text().partition("## Prometheus on one machine")[2]
    started = re.search(
        r"^HEADRACE_WORKER_METRICS_PORT=(\d+) HEADRACE_DISPATCHER_PORT=(\d+) headrace up$", section, re.M
    )
    assert started
    targets = [target for one in local for each in one["static_configs"] for target in each["targets"]]
    assert targets == [f"127.0.0.1:{port}" for port in (Settings.model_fields["api_port"].default, *started.groups())]


def test_a_wheel_brings_the_alerts_and_the_dashboards() -> None:
    brought = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    files = {path for patterns in brought.values() for pattern in patterns for path in ROOT.glob(pattern)}
    assert files == {RULES, RULES.with_name("local.yaml"), *DASHBOARDS}


def test_an_alert_is_false_if_neither_its_fault_nor_the_one_before_explains_it() -> None:
    fired = {
        "no fault": set[str](),
        "HeadraceRolloutStuck": {"HeadraceRolloutUndecided"},
        "HeadraceWebhooksFail": {"HeadraceRolloutUndecided", "HeadraceRolloutStuck"},
        "HeadraceJunkInRedis": {"HeadraceRolloutStuck"},
    }
    assert companions.false_alerts(fired) == {"HeadraceJunkInRedis": {"HeadraceRolloutStuck"}}
    assert companions.false_alerts({"no fault": {"HeadraceRefused"}}) == {"no fault": {"HeadraceRefused"}}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_each_panel_of_a_dashboard_shows_exported_metrics(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert expressions
    for expression in expressions:
        assert used_in(expression), expression
        assert used_in(expression) <= EXPORTED, expression
        assert not re.search(r"\b(job_id|prompt)\b", expression)


def test_promtool_takes_the_rules_and_its_tests_pass() -> None:
    if program("promtool") is None:
        pytest.skip("no promtool: make build/prometheus unpacks Debian's package, or install prometheus")
    for arguments in (("check", "rules", str(RULES)), ("test", "rules", str(RULES.with_name("headrace.test.yaml")))):
        done = run_promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
