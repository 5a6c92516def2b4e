"""The metrics of webhooks are those of their page."""

import re

from prometheus_client import CollectorRegistry, generate_latest

from headrace.features.webhooks.metrics import WebhookMetrics
from tests.metric_names import rows


def test_the_page_has_every_metric_that_the_document_lists() -> None:
    registry = CollectorRegistry()
    WebhookMetrics(registry)
    page = generate_latest(registry).decode()
    shown = set(re.findall(r"^# TYPE (headrace_\w+) ", page, re.MULTILINE))
    listed = {name for row in rows() if row.process == "Webhooks" for name in row.names}
    assert {name.removesuffix("_created") for name in shown} == listed
