"""What webhooks add to the dispatcher: the sender runs while it leads, and a duty measures how late it is."""

from headrace.features.webhooks.metrics import WebhookMetrics
from headrace.features.webhooks.outbox import DUE, oldest_due_s
from headrace.features.webhooks.sender import WebhookSender
from headrace.store.calls.addresses import parse_networks
from headrace.store.keeper import Duty
from headrace.store.scheduling.work_probe import PendingWork
from headrace.workers.dispatcher.dispatcher_part import DispatcherContext, DispatcherPart, DispatcherWork

# The sender is notified when deliveries are due; it polls as well, in case a notification is lost.
_SENDER_LOOKS_S = 1.0
_MEASURE_S = 2.0


class WebhookWork(DispatcherWork):
    """The sender of one dispatcher. Raises SettingsError for malformed networks, which must stop the process."""

    def __init__(self, context: DispatcherContext) -> None:
        parse_networks(context.settings.webhook_allow_networks)
        self._context = context
        self._metrics = WebhookMetrics(context.metrics.registry)
        self._sender: WebhookSender | None = None
        is_measured = context.settings.dispatcher_port != 0
        self.duties = ((Duty("measure_webhooks", _MEASURE_S, self._measure, lambda: is_measured),),)

    def begin_leading(self) -> None:
        """Start the sender."""
        context = self._context
        self._sender = WebhookSender(
            context.db,
            context.settings,
            metrics=self._metrics,
            look_every_s=_SENDER_LOOKS_S,
            tracing=context.tracing,
        )
        self._sender.start()

    def end_leading(self, timeout_s: float) -> None:
        """Stop the sender."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.stop(timeout_s)

    def notice(self, due: PendingWork) -> None:
        """Let the sender take what is due."""
        sender = self._sender
        if sender is not None and due.has("deliveries"):
            sender.notify_due()

    def clear(self) -> None:
        """Forget how late deliveries are."""
        self._metrics.due_age.set(0)

    def _measure(self) -> None:
        self._metrics.due_age.set(oldest_due_s(self._context.db))


PART = DispatcherPart(WebhookWork, {"deliveries": DUE})
