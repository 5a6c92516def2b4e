"""The commands of prompt templates."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart(
    {
        "prompts": Node(
            "Prompt templates: list, show, put, render, …",
            "headrace.features.templates.prompt_verbs:app",
            panel="Models, queues, webhooks",
        )
    }
)
