"""The metrics of webhooks in one dispatcher."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headrace.store.metrics.registry import SECONDS, begin


class WebhookMetrics:
    """The metrics, each as an attribute. Only a leader delivers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.attempts = Counter(
            "headrace_webhook_attempts",
            "attempts to deliver: delivered, refused (another status), unanswered",
            ["outcome"],
            registry=registry,
        )
        begin(self.attempts, "delivered", "refused", "unanswered")
        self.lag = Histogram(
            "headrace_webhook_lag_seconds", "from the event to its delivery", buckets=SECONDS, registry=registry
        )
        self.failed = Counter(
            "headrace_webhooks_failed", "deliveries given up after their last attempt", registry=registry
        )
        self.endpoints_disabled = Counter(
            "headrace_webhook_endpoints_disabled", "endpoints disabled because nothing reached them", registry=registry
        )
        self.due_age = Gauge(
            "headrace_webhook_oldest_due_seconds", "how long the oldest due delivery has been due", registry=registry
        )
