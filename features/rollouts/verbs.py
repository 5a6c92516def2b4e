"""The commands of rollouts."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart(
    {
        "rollout": Node(
            "Rollouts: list, start, show, pause, promote, abort.",
            "headrace.features.rollouts.rollout_verbs:app",
            panel="Models, queues, webhooks",
        )
    }
)
