"""The commands of webhooks."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart(
    {
        "webhooks": Node(
            "Webhooks: endpoints, deliveries, redelivery.",
            "headrace.features.webhooks.webhook_verbs:app",
            panel="Models, queues, webhooks",
        )
    }
)
